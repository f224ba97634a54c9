"""Tensors inside a student that stand for tensors of its teacher, so that the two are compared.

Taken are the sums of residual blocks, which carry everything that goes on; in a network without
any, what some layers read, evenly spaced. A tensor counts only where its units still are the
teacher's: of a pruned model some of them, in order, of any other model all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.distillation.losses import Feature
from onnxprune.model.observe import Observation
from onnxprune.surgery.linear import LINEAR_OPS

_FEW, _MOST = 3, 12
_NORMALISED_SUMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}

KeptIndices = Callable[[str], "Mapping[int, NDArray[np.int64]] | None"]


def features_of(
    student: ir.Model, teacher: ir.Model, seen: tuple[Observation, Observation], kept: KeptIndices
) -> list[Feature]:
    """Choose tensors to compare.

    Args:
        student: whose main graph has them.
        teacher: whose main graph has tensors of the same names.
        seen: a run of each on the same samples.
        kept: by name of a tensor of the teacher, the indices that the student has of its axes,
            those that lost some; None for a tensor whose units are others.
    """
    own, shapes = seen[0], seen[1].shapes
    names = {value.name for node in teacher.graph for value in node.outputs if value.name}

    def fitting(candidates: Sequence[str]) -> list[Feature]:
        found = []
        for name in dict.fromkeys(candidates):
            kind = own.types.get(name)
            if name not in names or kind is None or not kind.is_floating_point():
                continue
            indices = kept(name) if name in shapes else None
            if indices is not None and _after(shapes[name], indices) == own.shapes[name]:
                found.append(Feature(name, indices))
        return found

    sums = fitting(_sums(student.graph, own))
    if len(sums) >= _FEW:
        return _spread(sums)
    return _spread(fitting([*(sum.name for sum in sums), *_layer_inputs(student.graph)]))


def _spread(features: Sequence[Feature]) -> list[Feature]:
    """Some of many, evenly spaced, the last one among them."""
    if len(features) <= _MOST:
        return list(features)
    return [features[(number + 1) * len(features) // _MOST - 1] for number in range(_MOST)]


def _sums(graph: ir.Graph, seen: Observation) -> list[str]:
    """Outputs of residual sums, in graph order."""
    names = []
    for node in graph:
        if node.op_type in _NORMALISED_SUMS:
            names.append(node.outputs[0].name or "")
        if node.op_type != "Add" or node.domain or len(node.inputs) != 2:
            continue
        shapes = {seen.shapes.get(value.name or "") for value in node.inputs if value is not None}
        computed = all(v is not None and v.producer() is not None for v in node.inputs)
        constant = any(_is_constant(value) for value in node.inputs)
        if computed and not constant and len(shapes) == 1:
            names.append(node.outputs[0].name or "")
    return names


def _layer_inputs(graph: ir.Graph) -> list[str]:
    """What layers with weights read, in graph order."""
    layers = [node for node in graph if node.op_type in LINEAR_OPS]
    values = [node.inputs[0] for node in layers if node.inputs[0] is not None]
    return [value.name or "" for value in values if value.producer() is not None]


def _is_constant(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Constant"


def _after(shape: tuple[int, ...], kept: Mapping[int, NDArray[np.int64]]) -> tuple[int, ...]:
    return tuple(len(kept[axis]) if axis in kept else size for axis, size in enumerate(shape))
