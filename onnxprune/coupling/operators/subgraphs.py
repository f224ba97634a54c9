"""If, Loop and Scan: the walk goes on inside their subgraphs.

A carried state is one tensor: its initial value, the formal input, the result of an iteration and
the final value lose the same entries. A constant that a body returns unchanged stays the constant
it is outside. What a Scan walks along loses one axis inside; what is collected over the iterations
gains one.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.coupling.labels import Operand, TensorLabels, join, rename
from onnxprune.coupling.step import Refusal, RuleTable, Step
from onnxprune.model.bodies import body_of, subgraphs


def _if(step: Step) -> None:
    """If: both branches make the same labels."""
    branches = subgraphs(step.node)
    for branch in branches:
        step.walk.along(branch)
    for slot in step.outputs():
        results = [_result(step, branch.outputs[slot]) for branch in branches]
        if any(labels.shape != step.output_shape(slot) for labels in results):
            raise Refusal("If with results of different shapes")
        operands = [Operand.of(labels) for labels in results]
        axis_labels = join(step.relations, operands)
        step.emit(axis_labels, slot, zero=all(operand.blanks(axis_labels) for operand in operands))


def _repeated(step: Step) -> None:
    """Loop, Scan."""
    body = body_of(step.node)
    graph = body.graph
    formals = [value.name or "" for value in graph.inputs]
    for formal in body.alone:
        step.tensors[formals[formal]] = TensorLabels("", ())
    changing: list[tuple[bool, TensorLabels, ir.Value]] = []
    for slot, formal, result, _ in body.states:
        labels = step.read(slot)
        if labels.constant and _handed_on(step, slot, graph.inputs[formal], graph.outputs[result]):
            step.tensors[formals[formal]] = labels
            continue
        axis_labels = labels.materialise(step.relations)
        state = TensorLabels(formals[formal], labels.shape, axis_labels)
        step.tensors[formals[formal]] = state
        changing.append((labels.zero, state, graph.outputs[result]))
    for slot, formal, axis in body.slices:
        labels = step.read(slot)
        axis %= len(labels.shape)
        labels.materialise(step.relations)
        axis_labels = step.fix(labels, [axis], f"{step.node.op_type} runs along it")
        kept = [i for i in range(len(labels.shape)) if i != axis]
        shape = tuple(labels.shape[i] for i in kept)
        moved = rename(axis_labels, {old: new for new, old in enumerate(kept)})
        name = formals[formal]
        step.tensors[name] = TensorLabels(name, shape, moved, zero=labels.zero)
    _find_zeros(step, graph, changing)
    step.walk.along(graph)
    for slot, formal, result, out in body.states:
        given, made = step.peek(slot), _result(step, graph.outputs[result])
        state = step.tensors[formals[formal]]
        if made is not state and state is not given:
            made.axis_labels = join(step.relations, [Operand.of(state), Operand.of(made)])
        if step.has_output(out):
            step.emit(made.materialise(step.relations), out, zero=given.zero and made.zero)
    for result, out, axis in body.stacked:
        made = _result(step, graph.outputs[result])
        axis %= len(made.shape) + 1
        shifted = {i: i + (i >= axis) for i in range(len(made.shape))}
        if step.has_output(out):
            step.emit(rename(made.materialise(step.relations), shifted), out, zero=made.zero)


def _find_zeros(
    step: Step, graph: ir.Graph, states: list[tuple[bool, TensorLabels, ir.Value]]
) -> None:
    """Find the states that are zero where they are removed, initially and by every iteration.

    Args:
        step: the node.
        graph: its body, about to be walked along.
        states: whether the initial value is zero there, labels of the formal input, result.
    """
    for zero, state, _ in states:
        state.zero = zero
    while any(state.zero for _, state, _ in states):
        after = step.walk.rehearse(graph)
        wrong = [
            state
            for _, state, result in states
            if state.zero and not (result.name in after and after[result.name or ""].zero)
        ]
        if not wrong:
            return
        for state in wrong:
            state.zero = False


def _handed_on(step: Step, slot: int, formal: ir.Value, result: ir.Value) -> bool:
    """Whether a body makes a state of floats from itself with nothing but Identity."""
    given, value = step.node.inputs[slot], result
    if given is None or (given.dtype is not None and not given.dtype.is_floating_point()):
        return False
    while value is not formal:
        producer = value.producer()
        if producer is None or producer.op_type != "Identity" or producer.domain:
            return False
        source = producer.inputs[0]
        if source is None:
            return False
        value = source
    return True


def _result(step: Step, value: ir.Value) -> TensorLabels:
    """Labels of what a body returns; made by its own nodes, or anything around it."""
    name = value.name or ""
    if name not in step.tensors:
        raise Refusal(f"the shape of {name} is unknown")
    return step.tensors[name]


RULES: RuleTable = {("", "If"): _if, **{("", op): _repeated for op in ("Loop", "Scan")}}
