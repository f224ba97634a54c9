"""The two models a cut is checked with: the removed part zero, and the removed part gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.model.bodies import node_id, subgraphs
from onnxprune.model.observe import blocks
from onnxprune.model.tensors import extents
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.integer_values import IntegerValues
from onnxprune.surgery.operators import SIZE_RULES
from onnxprune.surgery.operators.site import Site

_LARGE = 65536


def zero_removed(model: ir.Model, cut: Cut) -> None:
    """Set the removed slices of every cut constant to zero, in place.

    Constants that divide keep their values: 0/0 would poison the rest, and what they divide is
    zero already. Large tensors are computed when they are read, each time anew.
    """
    owners = _owners(model.graph, cut)
    for name, tensor in _cut_constants(cut):
        if name not in cut.coupling.divisors:
            blank = partial(_blanked, tensor, cut.kept(name), _zero_point(cut, name))
            shape = extents(tensor)
            lazy = tensor.nbytes >= _LARGE
            _replace_constant(owners, name, _computed(tensor, shape, blank, lazy))


def slice_removed(model: ir.Model, cut: Cut) -> None:
    """Cut every constant and patch everything that speaks of sizes, in place.

    What is left of tensors that are not in memory is computed when it is read, each time anew.

    Raises:
        CutError: when the graph cannot express the smaller model.
    """
    integers = IntegerValues(cut, dict(model.opset_imports))
    _patch(Editor(model.graph), model.opset_imports.get("", 1), cut, integers)
    owners = _owners(model.graph, cut)
    for name, tensor in _cut_constants(cut):
        kept = cut.kept(name)
        pairs = enumerate(extents(tensor))
        shape = tuple(len(kept[axis]) if axis in kept else extent for axis, extent in pairs)
        lazy = isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)) and tensor.nbytes >= _LARGE
        taken = partial(_taken, tensor, kept, shape)
        _replace_constant(owners, name, _computed(tensor, shape, taken, lazy))
    _forget_shapes(model.graph)
    for body in _graphs(model.graph, cut):
        if body is not model.graph:
            _forget_cut_shapes(body, cut)


def _patch(editor: Editor, opset: int, cut: Cut, integers: IntegerValues) -> None:
    """Patch the nodes of a graph and of the bodies in it."""
    for node in list(editor.graph):
        integers.follow(node)
        if node.graph is None:
            continue
        if rule := SIZE_RULES.get((node.domain, node.op_type)):
            rule(Site.of(node, editor, opset, cut, integers))
        for body in _bodies(node, cut):
            _patch(Editor(body, editor), opset, cut, integers)


def _bodies(node: ir.Node, cut: Cut) -> list[ir.Graph]:
    """Bodies of a node that have been looked into."""
    return [] if node_id(node) in cut.coupling.closed else subgraphs(node)


def _graphs(graph: ir.Graph, cut: Cut) -> Iterator[ir.Graph]:
    """A graph and the bodies in it that have been looked into."""
    yield graph
    for node in graph:
        for body in _bodies(node, cut):
            yield from _graphs(body, cut)


def _cut_constants(cut: Cut) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Constants that lose something, with their values at full size."""
    for name, tensor in cut.coupling.facts.constants.items():
        if cut.touches(name):
            yield name, tensor


def _owners(graph: ir.Graph, cut: Cut) -> dict[str, ir.Value]:
    """Initializers and outputs of Constant nodes, by name."""
    owners: dict[str, ir.Value] = {}
    for part in _graphs(graph, cut):
        owners |= part.initializers
        made = (node.outputs[0] for node in part if node.op_type == "Constant")
        owners |= {value.name: value for value in made if value.name}
    return owners


def _zero_point(cut: Cut, name: str) -> NDArray[Any] | None:
    """What zero is in a quantised constant, broadcast against it; None for plain zero."""
    point, axis = cut.coupling.zero_points.get(name, ("", 0))
    tensor = cut.coupling.facts.constants.get(point)
    if tensor is None:
        return None
    value = tensor.numpy()
    shape = extents(cut.coupling.facts.constants[name])
    if value.size > 1:
        value = value.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(value, shape)


def _blanked(
    tensor: ir.TensorProtocol, kept: Mapping[int, NDArray[np.int64]], zero: NDArray[Any] | None
) -> NDArray[Any]:
    result = np.zeros(extents(tensor), tensor.dtype.numpy())
    if zero is not None:
        result[...] = zero
    for start, block in blocks(tensor):
        spans = {**kept, 0: _within(kept, start, len(block))} if 0 in kept else kept
        if len(spans) == 1:
            ((axis, indices),) = spans.items()
            where: Any = (*[slice(None)] * axis, indices)
        else:
            where = np.ix_(*[spans.get(axis, np.arange(n)) for axis, n in enumerate(block.shape)])
        result[start : start + len(block)][where] = block[where]
    return result


def _taken(
    tensor: ir.TensorProtocol, kept: Mapping[int, NDArray[np.int64]], shape: tuple[int, ...]
) -> NDArray[Any]:
    result = np.empty(shape, tensor.dtype.numpy())
    done = 0
    for start, block in blocks(tensor):
        part = block.take(_within(kept, start, len(block)), axis=0) if 0 in kept else block
        for axis, indices in kept.items():
            part = part.take(indices, axis=axis) if axis else part
        result[done : done + len(part)] = part
        done += len(part)
    return result


def _within(kept: Mapping[int, NDArray[np.int64]], start: int, length: int) -> NDArray[np.int64]:
    """Kept entries of a block of the first axis, counted from its start."""
    if 0 not in kept:
        return np.arange(length)
    low, high = np.searchsorted(kept[0], (start, start + length)).tolist()
    return kept[0][low:high] - start


def _computed(
    source: ir.TensorProtocol,
    shape: tuple[int, ...],
    compute: Callable[[], NDArray[Any]],
    lazy: bool,
) -> ir.TensorProtocol:
    """What is computed from a tensor, with its name, type and metadata."""
    kept: dict[str, Any] = {
        "name": source.name,
        "doc_string": source.doc_string,
        "metadata_props": dict(source.metadata_props),
    }
    dtype = ir.DataType(source.dtype)
    if not lazy:
        return ir.Tensor(compute(), dtype=dtype, **kept)
    return ir.LazyTensor(
        lambda: ir.Tensor(compute(), dtype=dtype), dtype=dtype, shape=ir.Shape(shape), **kept
    )


def _replace_constant(owners: Mapping[str, ir.Value], name: str, tensor: ir.TensorProtocol) -> None:
    """Put a changed tensor in place of an initializer or of the output of a Constant node.

    A constant that is missing was left without consumers by a size rule.
    """
    value = owners.get(name)
    if value is None:
        return
    node = value.producer()
    if node is None:
        value.const_value = tensor
        value.shape = ir.Shape(tensor.shape.numpy())
    else:
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop value_info, which is stale now; the interface keeps its declared shapes."""
    interface = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if id(value) not in interface:
                value.shape = None
                value.type = None


def _forget_cut_shapes(body: ir.Graph, cut: Cut) -> None:
    """Drop what a body declares of tensors that are cut, its inputs and outputs among them."""
    made = (value for node in body for value in node.outputs)
    for value in (*body.inputs, *made):
        if value.name and not value.is_initializer() and cut.touches(value.name):
            value.shape = None
