"""The teacher as it is run: its outputs, and tensors inside that the student has as well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.distillation.losses import Feature, channel_axis
from onnxprune.gradients.differentiated import single
from onnxprune.gradients.preparation import to_single_precision
from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime

_PREFIX = "onnxprune/teacher"
_SMALLEST = 1e-12


class Teacher:
    """Runs a teacher in single precision.

    Args:
        model: unchanged.
        features: tensors of its main graph that are wanted, as far as the student has them.
        runtime: how to run.
        outputs: whether its outputs are wanted as well.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: ir.Model,
        features: Sequence[Feature],
        runtime: Runtime,
        *,
        outputs: bool = True,
    ) -> None:
        copy = model.clone()
        to_single_precision(copy)
        self._names = {}
        if not outputs:
            del copy.graph.outputs[:]
        values = {value.name: value for node in copy.graph for value in node.outputs}
        for number, feature in enumerate(features):
            value = values[feature.name]
            for axis, indices in feature.kept.items():
                value = _taken(copy.graph, value, axis, indices, f"{_PREFIX}/{number}/{axis}")
            node = ir.Node("", "Identity", [value])
            copy.graph.append(node)
            output = node.outputs[0]
            output.name, output.type = f"{_PREFIX}/{number}", ir.TensorType(ir.DataType.FLOAT)
            copy.graph.outputs.append(output)
            self._names[output.name] = feature.name
        if not outputs:
            RemoveUnusedNodesPass()(copy)
        self._execution = Execution(copy, runtime)

    def run(
        self, feed: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Outputs and features of a batch, by name."""
        results = self._execution.run(single(feed))
        features = {name: results.pop(output) for output, name in self._names.items()}
        return results, features


def _taken(
    graph: ir.Graph, value: ir.Value, axis: int, indices: NDArray[np.int64], name: str
) -> ir.Value:
    """Append a Gather of some indices of an axis."""
    places = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(indices))])
    places.outputs[0].name = f"{name}/indices"
    node = ir.Node("", "Gather", [value, places.outputs[0]], [ir.AttrInt64("axis", axis)])
    node.outputs[0].name = name
    graph.append(places)
    graph.append(node)
    return node.outputs[0]


def with_variance(
    features: Sequence[Feature], values: Iterable[Mapping[str, NDArray[Any]]]
) -> list[Feature]:
    """Features with their variance around the mean of each channel; constant ones are left out.

    Args:
        features: of a model.
        values: of them, by name, for some batches; one at a time is held.
    """
    spreads = {feature.name: _Spread() for feature in features}
    for batch in values:
        for name, spread in spreads.items():
            spread.add(batch[name])
    found = ((feature, spreads[feature.name].variance()) for feature in features)
    return [replace(feature, variance=v) for feature, v in found if _SMALLEST < v < math.inf]


class _Spread:
    """Mean and squared deviations of channels, batch after batch (Chan et al. 1983).

    Channels lie where `losses.channel_axis` says.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, array: NDArray[Any]) -> None:
        """Add a batch."""
        if not array.size:
            return
        axis = channel_axis(array.ndim)
        others = tuple(each for each in range(array.ndim) if each != axis)
        count = array.size // array.shape[axis]
        with np.errstate(invalid="ignore"):
            mean = array.mean(axis=others, dtype=np.float64)
            squares = array.var(axis=others, dtype=np.float64) * count
            apart = mean - self._mean
            both = self._count + count
            self._squares += squares + apart**2 * self._count * count / both
            self._mean += apart * count / both
        self._count = both

    def variance(self) -> float:
        """Mean over the channels; NaN where entries were not finite."""
        return float(np.mean(self._squares / max(self._count, 1)))
