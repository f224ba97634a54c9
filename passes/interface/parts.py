"""Where the entries of classes or tokens lie in an output: a whole axis, or a part of one.

A detection head often joins what belongs to a box with what belongs to the classes::

    Concat(boxes [N,4,A], Sigmoid(scores [N,C,A]), axis=1) -> [N,4+C,A]

The part of C entries starts at 4: that is read from the Concat, which is searched for from the
output back through nodes that leave the axis as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.model.observe import Facts

_ELEMENTWISE = frozenset(
    {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Exp", "Identity", "LogSoftmax", "Mul"}
    | {"Pow", "QuantizeLinear", "Relu", "Sigmoid", "Softmax", "Sub", "Tanh", "Where"}
)
_SCORES = frozenset({ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8})
_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Part:
    """Where the entries lie in an output.

    Attributes:
        axis: the axis.
        first: position of the first entry.
    """

    axis: int
    first: int = 0


def select_outputs(
    model: ir.Model, facts: Facts, outputs: Sequence[str] | None, *, scores: bool = False
) -> list[ir.Value]:
    """Outputs that may have the entries.

    Args:
        model: the model.
        facts: its element types.
        outputs: names; None for all.
        scores: only those of floats, booleans or bytes, which cannot be indices of entries.

    Raises:
        InputError: for a name that no output has.
    """
    known = [value.name for value in model.graph.outputs]
    names = [outputs] if isinstance(outputs, str) else outputs
    for name in names or ():
        if name not in known:
            raise InputError(f"there is no output {name!r}; the outputs are {known}")
    kinds = facts.first.types
    return [
        value
        for value in model.graph.outputs
        if value.name is not None
        and (names is None or value.name in names)
        and value.name in kinds
        and (not scores or kinds[value.name].is_floating_point() or kinds[value.name] in _SCORES)
    ]


def whole_axes(value: ir.Value, facts: Facts, size: int) -> list[Part]:
    """Axes of an output that have `size` entries."""
    lengths = _fixed_lengths(value, facts)
    return [Part(axis) for axis, length in lengths.items() if length == size]


def find_parts(value: ir.Value, facts: Facts, size: int, first: int | None = None) -> list[Part]:
    """Parts of an output that have `size` entries: whole axes, else what a Concat joins.

    Args:
        value: the output.
        facts: shapes at two sizes.
        size: how many entries there are.
        first: where they begin, on an axis that ends with them or, where there is none, on a
            longer one; None to read it from the graph.

    Returns:
        One part for each axis that has any.

    Raises:
        InputError: when several parts of one axis have `size` entries.
    """
    lengths = _fixed_lengths(value, facts)
    if first is not None:
        ending = [axis for axis, length in lengths.items() if length == first + size]
        longer = [axis for axis, length in lengths.items() if length > first + size]
        return [Part(axis, first) for axis in ending or longer]
    return whole_axes(value, facts, size) or [
        Part(axis, start)
        for axis, length in lengths.items()
        if length > size
        for start in _only_start(value, axis, facts, size)
    ]


def _fixed_lengths(value: ir.Value, facts: Facts) -> dict[int, int]:
    """Axes whose length does not depend on the input; the first of several counts samples."""
    name = value.name or ""
    shapes = facts.first.shapes.get(name, ()), facts.second.shapes.get(name, ())
    return {
        axis: shapes[0][axis]
        for axis in range(min(1, len(shapes[0]) - 1), len(shapes[0]))
        if shapes[0][axis] == shapes[1][axis]
    }


def _only_start(value: ir.Value, axis: int, facts: Facts, size: int) -> list[int]:
    """Where the only part of a size begins along an axis; none where there is none."""
    starts = sorted({start for start, length in _segments(value, axis, facts) if length == size})
    if len(starts) > 1:
        raise InputError(
            f"axis {axis} of output {value.name!r} has several parts of {size} entries, which "
            f"begin at {starts}; say which part is meant with first=N, or which outputs are with "
            "outputs=[...]"
        )
    return starts


def _segments(value: ir.Value, axis: int, facts: Facts) -> Iterator[tuple[int, int]]:
    """Start and length of all that Concat joins along an axis, outermost first."""
    waiting, seen = [(value, axis, 0)], set()
    while waiting:
        item = joined, place, start = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        node, shapes = joined.producer(), facts.first.shapes
        if node is None or node.domain != "":
            continue
        rank = len(shapes.get(joined.name or "", ()))
        if node.op_type == "Concat" and node.attributes.get_int("axis", 0) % rank == place:
            for operand in node.inputs:
                length = shapes.get(operand.name or "", (0,) * rank)[place] if operand else 0
                yield start, length
                waiting += [(operand, place, start)] if operand is not None else []
                start += length
        else:
            waiting += [(source, a, start) for source, a in _sources(node, joined, place, facts)]


def _sources(
    node: ir.Node, value: ir.Value, axis: int, facts: Facts
) -> Iterator[tuple[ir.Value, int]]:
    """Inputs that have the same axis as a node's output, with its number there."""
    made = facts.first.shapes.get(value.name or "", ())
    for operand in node.inputs:
        name = operand.name or "" if operand is not None else ""
        shape = facts.first.shapes.get(name, ())
        if operand is None or name in facts.constants:
            continue
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm", list(reversed(range(len(made)))))
            yield operand, list(order)[axis]
        elif node.op_type == "Concat":
            yield operand, axis
        elif node.op_type in _RESHAPING and operand is node.inputs[0]:
            yield from ((operand, a) for a in range(len(shape)) if _same_axis(shape, a, made, axis))
        elif node.op_type in _ELEMENTWISE and shape == made:
            yield operand, axis


def _same_axis(before: tuple[int, ...], old: int, after: tuple[int, ...], new: int) -> bool:
    """Whether a reshape leaves an axis as it is: same extent, same count in front of it."""
    return before[old] == after[new] and prod(before[:old]) == prod(after[:new])
