"""Gemm, MatMul and Einsum: labels of the summed axis are tied, the others flow on."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.coupling.labels import AxisLabels, Operand, TensorLabels, contract, rename
from onnxprune.coupling.step import Refusal, RuleTable, Step

_NOT_ZERO = "a product of two activations, neither of them zero where it is removed"


def contract_operands(step: Step, operands: Sequence[Operand], kept: Sequence[int]) -> TensorLabels:
    """Contract operands over the space axes that are not in `kept` and emit the result."""
    axis_labels = contract(step.relations, operands, kept, _NOT_ZERO)
    for operand in operands:
        _note_consumers(step, operand, operands, set(kept))
    zero = any(operand.blanks(axis_labels) for operand in operands) or _covered(
        operands, axis_labels
    )
    constant = all(operand.labels.constant for operand in operands)
    result = rename(axis_labels, {axis: position for position, axis in enumerate(kept)})
    return step.emit(result, zero=zero, constant=constant)


def _covered(operands: Sequence[Operand], axis_labels: AxisLabels) -> bool:
    """Every label of a product is zero in some factor."""
    return all(any(operand.blanks((label,)) for operand in operands) for label in axis_labels)


def _note_consumers(
    step: Step, operand: Operand, operands: Sequence[Operand], kept: set[int]
) -> None:
    """Record where removed entries of an activation are summed away."""
    if operand.labels.constant:
        return
    weight = next((other for other in operands if other.labels.constant), None)
    for own, axis in enumerate(operand.axes):
        labelled = any(own in label.axes for label in operand.labels.axis_labels)
        if axis is None or axis in kept or not labelled:
            continue
        if weight is not None and axis in weight.axes:
            step.note_consumer(operand.labels, own, weight.labels.name, weight.axes.index(axis))
        elif any(axis in other.axes for other in operands if other is not operand):
            step.note_consumer(operand.labels, own)


def gemm(step: Step) -> None:
    """Gemm: alpha a b + beta c, either factor transposed."""
    left = (1, 0) if step.attribute("transA", 0) else (0, 1)
    right = (2, 1) if step.attribute("transB", 0) else (1, 2)
    operands = [Operand(step.read(0), left), Operand(step.read(1), right)]
    output = contract_operands(step, operands, (0, 2))
    if step.has(2):
        rank = len(step.shape(2))
        step.add_bias(output, 2, range(2 - rank, 2))


def _matmul(step: Step) -> None:
    first, second = step.read(0), step.read(1)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    contract_operands(step, [Operand(first, left), Operand(second, right)], kept)


def matmul_axes(first: int, second: int) -> tuple[tuple[int, ...], tuple[int, ...], list[int]]:
    """Space axes of both operands of a matrix product, by their ranks, and those of its result.

    Batch axes come first in the space, then row, then the summed axis, then column.
    """
    ranks = first, second
    batch = max(*ranks, 2) - 2
    row, summed, column = batch, batch + 1, batch + 2
    left = (summed,) if ranks[0] == 1 else (*range(batch + 2 - ranks[0], batch), row, summed)
    right = (summed,) if ranks[1] == 1 else (*range(batch + 2 - ranks[1], batch), summed, column)
    kept = list(range(batch))
    kept += [row] if ranks[0] > 1 else []
    kept += [column] if ranks[1] > 1 else []
    return left, right, kept


def _einsum(step: Step) -> None:
    equation = str(step.attribute("equation")).replace(" ", "")
    if "." in equation:
        raise Refusal("Einsum with an ellipsis is not understood")
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if "->" not in equation:
        output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    if len(terms) == 1 or any(len(set(term)) != len(term) for term in [*terms, output]):
        raise Refusal("an Einsum of one operand or with a repeated letter is not understood")
    operands = [
        Operand(step.read(slot), tuple(ord(letter) for letter in term))
        for slot, term in enumerate(terms)
    ]
    contract_operands(step, operands, [ord(letter) for letter in output])


RULES: RuleTable = {("", "Gemm"): gemm, ("", "MatMul"): _matmul, ("", "Einsum"): _einsum}
