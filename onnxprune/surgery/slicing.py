"""The two models a cut is checked with: the removed part zero, and the removed part gone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.surgery.arithmetic import IntegerValues
from onnxprune.surgery.attributes import ATTRIBUTES
from onnxprune.surgery.patches import PATCHES
from onnxprune.surgery.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnxprune.coupling.cut import Cut

__all__ = ["slice_removed", "zero_removed"]


def zero_removed(model: ir.Model, cut: Cut) -> None:
    """Set the removed slices of every cut constant to zero, in place.

    Constants that divide keep their values: 0/0 would poison the rest, and what they divide is
    zero already.
    """
    for name in _cut_constants(cut):
        if name not in cut.coupling.divisors:
            blank = partial(_blanked, kept=cut.kept(name), zero=_zero_point(cut, name))
            _replace_constant(model.graph, name, blank)


def slice_removed(model: ir.Model, cut: Cut) -> None:
    """Cut every constant and patch everything that speaks of sizes, in place.

    Raises:
        CutError: when the graph cannot express the smaller model.
    """
    integers = IntegerValues(cut, dict(model.opset_imports))
    for node in list(model.graph):
        integers.follow(node)
        if node.graph is None:
            continue
        site = Site(model.graph, node, model.opset_imports.get("", 1), cut, integers)
        for table in (ATTRIBUTES, PATCHES):
            if patch := table.get((node.domain, node.op_type)):
                patch(site)
    for name in _cut_constants(cut):
        _replace_constant(model.graph, name, partial(_taken, kept=cut.kept(name)))
    _forget_shapes(model.graph)


def _cut_constants(cut: Cut) -> list[str]:
    return [name for name in cut.coupling.facts.constants if cut.touches(name)]


def _zero_point(cut: Cut, name: str) -> NDArray[Any] | None:
    """What zero is in a quantised constant, broadcast against it; None for plain zero."""
    point, axis = cut.coupling.zero_points.get(name, ("", 0))
    tensor = cut.coupling.facts.constants.get(point)
    if tensor is None:
        return None
    value = tensor.numpy()
    rank = len(cut.coupling.facts.constants[name].shape)
    return value.reshape([-1 if i == axis else 1 for i in range(rank)]) if value.size > 1 else value


def _blanked(
    value: NDArray[Any], kept: dict[int, NDArray[np.int64]], zero: NDArray[Any] | None
) -> NDArray[Any]:
    result = np.zeros_like(value)
    if zero is not None:
        result[...] = zero
    index = np.ix_(*(kept.get(axis, np.arange(n)) for axis, n in enumerate(value.shape)))
    result[index] = value[index]
    return result


def _taken(value: NDArray[Any], kept: dict[int, NDArray[np.int64]]) -> NDArray[Any]:
    for axis, indices in kept.items():
        value = value.take(indices, axis=axis)
    return value


def _replace_constant(
    graph: ir.Graph, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Put a changed tensor in place of an initializer or of the output of a Constant node."""
    if name in graph.initializers:
        value = graph.initializers[name]
        assert value.const_value is not None
        tensor = _changed(value.const_value, change)
        value.const_value = tensor
        value.shape = ir.Shape(tensor.shape.numpy())
        return
    node = next((n for n in graph if n.outputs and n.outputs[0].name == name), None)
    if node is None:  # nothing read it any more once its reader got a constant of its own
        return
    constant = ir.convenience.get_const_tensor(node.outputs[0])
    assert constant is not None
    node.attributes.clear()
    node.attributes["value"] = ir.AttrTensor("value", _changed(constant, change))
    node.outputs[0].const_value = None


def _changed(
    tensor: ir.TensorProtocol, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> ir.TensorProtocol:
    return ir.tensor(change(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop value_info, which is stale now; the interface keeps its declared shapes."""
    interface = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if id(value) not in interface:
                value.shape = None
                value.type = None
