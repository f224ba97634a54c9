"""Operators that take or put entries at computed places, and those that turn lines around."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.gradients.step import GradientStep, NoGradient, Rule

_ADDING = 16


def _gather_nd(step: GradientStep) -> Mapping[int, ir.Value]:
    """What was taken twice adds up."""
    if int(step.attribute("batch_dims", 0)):
        raise NoGradient("it has batch_dims, expected 0")
    return {0: _scattered(step, "ScatterND", step.input(1))}


def _gather_elements(step: GradientStep) -> Mapping[int, ir.Value]:
    return {0: _scattered(step, "ScatterElements", step.input(1), axis=step.axis(0))}


def _top_k(step: GradientStep) -> Mapping[int, ir.Value]:
    """Values go back to where they were; each was taken once."""
    emit, axis = step.emit, step.axis(-1)
    places = step.node.outputs[1]
    return {0: emit.op("ScatterElements", _zeros(step), places, step.gradient, axis=axis)}


def _scattered(step: GradientStep, kind: str, places: ir.Value, **attributes: int) -> ir.Value:
    if step.emit.opset < _ADDING:
        raise NoGradient(f"the operator set is {step.emit.opset}, expected {_ADDING} or later")
    return step.emit.op(kind, _zeros(step), places, step.gradient, reduction="add", **attributes)


def _zeros(step: GradientStep) -> ir.Value:
    emit, x = step.emit, step.input()
    return emit.op("Expand", emit.number(0.0, x), emit.shape(x))


def _scatter_nd(step: GradientStep) -> Mapping[int, ir.Value]:
    return _put(step, "ScatterND", "GatherND")


def _scatter_elements(step: GradientStep) -> Mapping[int, ir.Value]:
    return _put(step, "ScatterElements", "GatherElements", axis=step.axis(0))


def _put(step: GradientStep, put: str, take: str, **attributes: int) -> Mapping[int, ir.Value]:
    """Updates take the places of data, are added to them, or compete with them."""
    emit, g, places = step.emit, step.gradient, step.input(1)
    kind = step.attribute("reduction", "none")
    if kind in ("max", "min"):
        return _to_the_largest(step, put, take, **attributes)
    if kind not in ("none", "add"):
        raise NoGradient(f"its reduction is {kind}, expected none, add, max or min")
    updates = step.input(2)
    nothing = emit.op("Expand", emit.number(0.0, updates), emit.shape(updates))
    rest = g if kind == "add" else emit.op(put, g, places, nothing, **attributes)
    return {0: rest, 2: emit.op(take, g, places, **attributes)}


def _to_the_largest(
    step: GradientStep, put: str, take: str, **attributes: int
) -> Mapping[int, ir.Value]:
    """Entries that became the result share its gradient."""
    emit, places, data, updates = step.emit, step.input(1), step.input(0), step.input(2)
    reached = emit.op(take, step.output, places, **attributes)
    kept = emit.cast_like(emit.op("Equal", data, step.output), data)
    won = emit.cast_like(emit.op("Equal", updates, reached), data)
    winners = emit.op(put, kept, places, won, reduction="add", **attributes)
    share = emit.op("Div", step.gradient, winners)
    back = emit.op(take, share, places, **attributes)
    return {0: emit.op("Mul", kept, share), 2: emit.op("Mul", won, back)}


def _tile(step: GradientStep) -> Mapping[int, ir.Value]:
    """Copies add up: each axis is split into copies and places."""
    emit, x, rank = step.emit, step.input(), step.rank()
    places = emit.unsqueeze(emit.shape(x), [1])
    pairs = emit.op("Concat", emit.unsqueeze(step.input(1), [1]), places, axis=1)
    split = emit.reshape(step.gradient, emit.reshape(pairs, emit.integers(-1)))
    return {0: emit.reduce("ReduceSum", split, range(0, 2 * rank, 2), keep=False)}


def _cumulative(step: GradientStep) -> Mapping[int, ir.Value]:
    """An entry is part of all sums behind it."""
    turned = 1 - int(step.attribute("reverse", 0))
    exclusive = int(step.attribute("exclusive", 0))
    axis = step.input(1)
    attributes = {"reverse": turned, "exclusive": exclusive}
    return {0: step.emit.op("CumSum", step.gradient, axis, **attributes)}


def _triangle(step: GradientStep) -> Mapping[int, ir.Value]:
    upper = int(step.attribute("upper", 1))
    return {0: step.emit.op("Trilu", step.gradient, *step.node.inputs[1:], upper=upper)}


def _reversed(step: GradientStep) -> Mapping[int, ir.Value]:
    attributes = {name: attribute.value for name, attribute in step.node.attributes.items()}
    return {0: step.emit.op("ReverseSequence", step.gradient, step.input(1), **attributes)}


RULES: dict[tuple[str, str], Rule] = {
    ("", "GatherND"): _gather_nd,
    ("", "GatherElements"): _gather_elements,
    ("", "ScatterND"): _scatter_nd,
    ("", "ScatterElements"): _scatter_elements,
    ("", "TopK"): _top_k,
    ("", "Tile"): _tile,
    ("", "CumSum"): _cumulative,
    ("", "Trilu"): _triangle,
    ("", "ReverseSequence"): _reversed,
}
"""Rule of every operator, by domain and name."""
