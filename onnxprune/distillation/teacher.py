"""The teacher as it is run: its outputs, and tensors inside that the student has as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.distillation.losses import Feature
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

    Raises:
        RuntimeFailure: when onnxruntime refuses the model.
    """

    def __init__(self, model: ir.Model, features: Sequence[Feature], runtime: Runtime) -> None:
        copy = model.clone()
        to_single_precision(copy)
        self._names = {}
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
    features: Sequence[Feature], values: Sequence[Mapping[str, NDArray[Any]]]
) -> list[Feature]:
    """Features with their variance around the mean of each channel; constant ones are left out.

    Args:
        features: of a model.
        values: of them, by name, for some batches.
    """
    result = []
    for feature in features:
        arrays = [batch[feature.name].astype(np.float64) for batch in values]
        if not all(np.isfinite(array).all() for array in arrays):
            continue
        variance = _variance(arrays)
        if variance > _SMALLEST:
            result.append(replace(feature, variance=variance))
    return result


def _variance(arrays: Sequence[NDArray[np.float64]]) -> float:
    """Mean variance of the channels: axis 1 of four axes and more, else the last."""
    axis = 1 if arrays[0].ndim > 3 else -1
    rows = np.concatenate([np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in arrays])
    return float(rows.var(axis=0).mean())
