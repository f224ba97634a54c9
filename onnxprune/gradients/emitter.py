"""Emitting ONNX nodes one after another, whatever the operator set of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.observe import Observation

_PREFIX = "onnxprune/gradient"
_AXES_AS_INPUT = {"ReduceSum": 13, "Unsqueeze": 13}
"""Operator set since which axes are an input; that of other reductions is below."""
_AXES_AS_INPUT_ELSE = 18
QUANTISED = {ir.DataType.INT8, ir.DataType.UINT8}
_SMOOTH = QUANTISED | {kind for kind in ir.DataType if kind.is_floating_point()}


class Emitter:
    """Appends nodes to a graph.

    Args:
        model: what nodes are appended to.
        observations: runs at two sizes; they say which axes broadcast, and element types.

    Attributes:
        graph: of the model.
        opset: its version of the standard operators.
    """

    def __init__(self, model: ir.Model, observations: Sequence[Observation]) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self._observations = observations
        self._count = 0

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append a node with one output.

        Args:
            kind: the operator.
            *inputs: None for an optional input that is left out.
            **attributes: of the node.
        """
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, count: int, *inputs: ir.Value | None, **attributes: Any
    ) -> list[ir.Value]:
        """Append a node with some number of outputs; see `op`."""
        converted = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", kind, inputs, converted, num_outputs=count)
        for value in node.outputs:
            value.name = f"{_PREFIX}/{self._count}"
            self._count += 1
        self.graph.append(node)
        return list(node.outputs)

    def constant(self, array: Any) -> ir.Value:
        """Append a Constant."""
        return self.op("Constant", value=ir.tensor(np.asarray(array)))

    def integers(self, *numbers: int) -> ir.Value:
        """Append a constant vector, int64."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """Append a constant scalar of the element type of an observed tensor."""
        dtype = self.dtype(like) or ir.DataType.FLOAT
        return self.constant(np.array(number, dtype.numpy()))

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Element type of a floating-point tensor of the model; None for any other type."""
        kind = self._observations[0].types.get(value.name or "")
        return kind if kind is not None and kind.is_floating_point() else None

    def has_slope(self, value: ir.Value) -> bool:
        """Whether a value varies smoothly: of floating point, quantised to 8 bits, or no tensor."""
        kind = self._observations[0].types.get(value.name or "")
        return kind is None or kind in _SMOOTH

    def integers_seen(self, value: ir.Value) -> NDArray[Any] | None:
        """Values of a tensor of integers that were the same in all runs; None where there are none.

        Few entries only are kept of each run.
        """
        seen = [run.integers.get(value.name or "") for run in self._observations]
        first = seen[0]
        return first if all(_same(first, other) for other in seen) else None

    def shape_seen(self, value: ir.Value) -> tuple[int, ...]:
        """Shape of a tensor of the model at the first observed size."""
        return self._shapes(value)[0]

    def varies(self, value: ir.Value, axis: int) -> bool:
        """Whether an axis of a tensor of the model had another extent in another run."""
        return len({shape[axis] for shape in self._shapes(value)}) > 1

    def rank(self, value: ir.Value) -> int:
        """Number of axes of a tensor of the model."""
        return len(self.shape_seen(value))

    def shape(self, value: ir.Value) -> ir.Value:
        """Append a Shape."""
        return self.op("Shape", value)

    def extents(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Append the extents of some neighbouring axes, int64 [stop - start]."""
        places = self.integers(*range(start, stop))
        return self.op("Gather", self.shape(value), places, axis=0)

    def extent_of(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Append the product of the extents of some neighbouring axes, int64 [1]."""
        if start == stop:
            return self.integers(1)
        return self.op("ReduceProd", self.extents(value, start, stop), keepdims=1)

    def joined(self, *parts: ir.Value) -> ir.Value:
        """Append a Concat of vectors."""
        return self.op("Concat", *parts, axis=0)

    def reshape(self, value: ir.Value, shape: ir.Value) -> ir.Value:
        """Append a Reshape to a shape that holds no zeros but for empty axes."""
        return self.op("Reshape", value, shape)

    def reshape_like(self, value: ir.Value, other: ir.Value) -> ir.Value:
        """Append a Reshape to the shape of another tensor."""
        return self.reshape(value, self.shape(other))

    def reduce(
        self, kind: str, value: ir.Value, axes: Sequence[int], keep: bool = True
    ) -> ir.Value:
        """Append a reduction; the value itself where there are no axes."""
        if not axes:
            return value
        return self._with_axes(kind, value, axes, keepdims=int(keep))

    def unsqueeze(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Append an Unsqueeze; the value itself where there are no axes."""
        return self._with_axes("Unsqueeze", value, axes) if axes else value

    def total(self, first: ir.Value | None, second: ir.Value) -> ir.Value:
        """Append a sum, where there is anything to add to."""
        return second if first is None else self.op("Add", first, second)

    def cast_like(self, value: ir.Value, other: ir.Value) -> ir.Value:
        """Append a Cast to the element type of an observed tensor."""
        return self.op("Cast", value, to=int(self.dtype(other) or ir.DataType.FLOAT))

    def real(self, value: ir.Value) -> ir.Value:
        """A tensor of the model, as numbers where it is quantised."""
        known = self.dtype(value) is not None
        return value if known else self.op("Cast", value, to=int(ir.DataType.FLOAT))

    def sum_to(
        self, gradient: ir.Value, operand: ir.Value, result: ir.Value, matrix_axes: int = 0
    ) -> ir.Value:
        """Undo a broadcast: add up the gradient of a result over the axes an operand lacks.

        Args:
            gradient: of the loss with respect to the result, broadcast like it.
            operand: tensor of the model that was broadcast.
            result: tensor of the model it was broadcast to.
            matrix_axes: number of trailing axes that do not broadcast.
        """
        lacking = self.rank(result) - self.rank(operand)
        pairs = zip(self._shapes(operand), self._shapes(result), strict=True)
        stretched = {
            axis + lacking
            for small, large in pairs
            for axis, extent in enumerate(small[: len(small) - matrix_axes])
            if extent == 1 and large[axis + lacking] != 1
        }
        if not stretched and not lacking:
            return gradient
        summed = self.reduce("ReduceSum", gradient, [*range(lacking), *sorted(stretched)])
        return self.reshape_like(summed, operand) if lacking else summed

    def _shapes(self, value: ir.Value) -> list[tuple[int, ...]]:
        return [run.shapes[value.name or ""] for run in self._observations]

    def _with_axes(
        self, kind: str, value: ir.Value, axes: Sequence[int], **attributes: Any
    ) -> ir.Value:
        if self.opset < _AXES_AS_INPUT.get(kind, _AXES_AS_INPUT_ELSE):
            return self.op(kind, value, axes=list(axes), **attributes)
        return self.op(kind, value, self.integers(*axes), **attributes)


def _same(first: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    return first is not None and other is not None and np.array_equal(first, other)
