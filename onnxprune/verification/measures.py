"""What the outputs of a model hold, and how two models' are compared.

An output holds

* *class scores*: what a Softmax gives or what would go into one, a row of scores for each decision;
* *probabilities*: what a Sigmoid gives; every entry is a decision of its own, yes or no;
* *quantities*: everything else: boxes, embeddings, states, images, single numbers.

What a linear layer gives may be class scores or quantities. It is taken for quantities where it has
one column, or four beside an output of as many rows with other columns: these are boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.outputs import (
    LINEAR,
    SOFTMAX,
    ScoreLayout,
    computing_ops,
    gives_probabilities,
    output_producer,
)

_SMALLEST = 1e-12  # of probabilities
_SUM_ERROR = 1e-2  # of probabilities that are classes', in half precision
_HALF = 0.5  # probability from which it is yes
_COORDINATES = 4  # of a box
_NEARLY_ALL = 0.99  # of boxes that have an extent
_LEAST_EXTENT = 0.01  # of a box, over the mean

_USELESS = 0.2
"""Error of every coordinate over the extent of a box, at which the two overlap by about half."""


class OutputKind(Enum):
    """What an output holds."""

    SCORES = "class scores"
    PROBABILITIES = "probabilities"
    QUANTITIES = "quantities"


class BoxForm(Enum):
    """What the four numbers of a box are."""

    CORNERS = "two corners"
    CENTRED = "centre and size"

    @classmethod
    def of(cls, boxes: NDArray[Any]) -> BoxForm | None:
        """Tell it by the values, [boxes, 4]; None for what is neither, such as offsets."""
        known = boxes[np.isfinite(boxes).all(axis=1)]
        if not len(known):
            return None
        if (known[:, 2:] > known[:, :2]).all(axis=1).mean() >= _NEARLY_ALL:
            return cls.CORNERS
        return cls.CENTRED if (known[:, 2:] > 0).all(axis=1).mean() >= _NEARLY_ALL else None


@dataclass(frozen=True)
class OutputMeasure:
    """How one output is compared.

    Attributes:
        name: of the output.
        kind: what it holds.
        layout: how class scores, or rows, lie in it.
        logs: whether scores are logarithms already; False for probabilities.
        unsure: whether scores may as well be quantities.
        rows_of: name of the output of decisions whose rows these are; empty for none.
        boxes: what the columns are, of boxes beside decisions; None for anything else.
    """

    name: str
    kind: OutputKind
    layout: ScoreLayout = field(default_factory=ScoreLayout)
    logs: bool = True
    unsure: bool = False
    rows_of: str = ""
    boxes: BoxForm | None = None

    def rows(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Logarithms of class scores, or whatever else there is, float64 [rows, columns]."""
        rows = self.plain_rows(array)
        if self.kind is OutputKind.SCORES and not self.logs:
            return np.asarray(np.log(np.maximum(rows, 0) + _SMALLEST))
        return rows

    def plain_rows(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """The values themselves, float64 [rows, columns]."""
        values = array.astype(np.float64)
        if array.ndim < 2 or self.kind is OutputKind.PROBABILITIES:
            return values.reshape(-1, 1)
        return np.asarray(self.layout.rows(values))

    def box_units(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Squared errors of the coordinates of boxes that add up to 1, float64 [rows, 4]."""
        rows = self.plain_rows(array)
        sizes = rows[:, 2:] - (rows[:, :2] if self.boxes is BoxForm.CORNERS else 0)
        least = _LEAST_EXTENT * np.abs(sizes).mean(axis=0)
        extents = np.tile(np.maximum(sizes, np.maximum(least, _SMALLEST)), 2)
        return np.asarray(_COORDINATES * (_USELESS * extents) ** 2)

    def decisions(self, array: NDArray[Any]) -> NDArray[np.int64] | None:
        """The class of each row, int64 [rows]; None for quantities."""
        if self.kind is OutputKind.QUANTITIES:
            return None
        rows = self.rows(array)
        if self.kind is OutputKind.PROBABILITIES:
            return (rows[:, 0] >= _HALF).astype(np.int64)
        return np.asarray(rows.argmax(axis=1), np.int64)


def output_measures(
    model: ir.Model, outputs: Sequence[Mapping[str, Any]]
) -> dict[str, OutputMeasure]:
    """Tell from the graph and some runs of a model how its outputs are compared.

    Args:
        model: the original.
        outputs: of each run, by name.

    Returns:
        by name, for every output that is a float tensor and not empty.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for batch in reversed(outputs):
        arrays |= {name: array for name, array in batch.items() if is_float(array) and array.size}
    opset = model.opset_imports.get("", 1)
    shapes = {name: array.shape for name, array in arrays.items()}
    measures = {
        value.name or "": _measure(
            value, opset, arrays[value.name or ""], _others(shapes, value.name or "")
        )
        for value in model.graph.outputs
        if value.name in arrays
    }
    for name, measure in measures.items():
        if measure.kind is OutputKind.QUANTITIES and len(shapes[name]) > 2:
            measures[name] = _tied(measure, arrays[name], measures, shapes)
    return measures


def is_float(array: Any) -> bool:
    """Whether this is an array of floating point, of whatever precision."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fV"


def _tied(
    measure: OutputMeasure,
    array: NDArray[Any],
    measures: Mapping[str, OutputMeasure],
    shapes: Mapping[str, tuple[int, ...]],
) -> OutputMeasure:
    """A measure of quantities, tied to the output of decisions that it shares its rows with."""
    leading = array.shape[:-1]
    beside = {
        each.kind: each.name for each in measures.values() if _shares_rows(each, leading, shapes)
    }
    boxes = None
    if array.shape[-1] == _COORDINATES:
        boxes = BoxForm.of(array.reshape(-1, _COORDINATES).astype(np.float64))
    kinds = (OutputKind.SCORES, *((OutputKind.PROBABILITIES,) if boxes is not None else ()))
    rows_of = next((beside[kind] for kind in kinds if kind in beside), "")
    return replace(measure, rows_of=rows_of, boxes=boxes if rows_of else None)


def _shares_rows(
    decisions: OutputMeasure, leading: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    shape = shapes[decisions.name]
    last = decisions.layout.axis in (-1, len(shape) - 1)
    return shape[:-1] == leading and last and decisions.kind is not OutputKind.QUANTITIES


def _others(shapes: Mapping[str, tuple[int, ...]], name: str) -> list[tuple[int, ...]]:
    return [shape for other, shape in shapes.items() if other != name]


def _measure(
    value: ir.Value, opset: int, array: NDArray[Any], others: Sequence[tuple[int, ...]]
) -> OutputMeasure:
    name, producer, ops = value.name or "", output_producer(value), computing_ops(value)
    layout = ScoreLayout.of(producer, opset)
    kind = producer.op_type if producer is not None else ""
    if gives_probabilities(value):
        return OutputMeasure(name, OutputKind.PROBABILITIES)
    if kind in SOFTMAX:
        return OutputMeasure(name, OutputKind.SCORES, layout, logs=kind == "LogSoftmax")
    if ops <= set(SOFTMAX):
        axis = _class_axis(array, logs=ops == {"LogSoftmax"})
        if axis is not None:
            moved = ScoreLayout(axis)
            return OutputMeasure(name, OutputKind.SCORES, moved, logs=ops == {"LogSoftmax"})
    columns = layout.rows(array).shape[1]
    beside = any(len(o) > 2 and o[:-1] == array.shape[:-1] and o[-1] != columns for o in others)
    if columns > 1 and not (beside and columns == _COORDINATES):
        boxes = any(o[:-1] == array.shape[:-1] and o[-1] == _COORDINATES for o in others)
        if kind in LINEAR or (beside and boxes and ops <= set(LINEAR)):
            return OutputMeasure(name, OutputKind.SCORES, layout, unsure=True)
    return OutputMeasure(name, OutputKind.QUANTITIES, layout)


def _class_axis(array: NDArray[Any], *, logs: bool) -> int | None:
    """The axis along which probabilities add up to 1."""
    values = array.astype(np.float64)
    values = np.exp(values) if logs else values
    axes: tuple[int, ...] = (-1, *range(1, array.ndim - 1))
    for axis in axes:
        if array.ndim and bool(np.abs(values.sum(axis=axis) - 1).max(initial=0) < _SUM_ERROR):
            return axis
    return None
