"""Which constants of a model are trained: weights, biases, scales and shifts.

A constant is a weight by the slot in which a node reads it, directly or moved (a transposed weight,
one between QuantizeLinear and DequantizeLinear). A constant vector that is added or multiplied is a
bias or a scale where it follows a layer or a normalisation; anything else (anchors, masks, numbers
of a formula) stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.bodies import places

_FUSED = "com.microsoft"

_SLOTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1, 2),
    ("", "ConvTranspose"): (1, 2),
    ("", "Gemm"): (0, 1, 2),
    ("", "MatMul"): (0, 1),
    ("", "Einsum"): (0, 1, 2),
    ("", "BatchNormalization"): (1, 2),
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("", "InstanceNormalization"): (1, 2),
    ("", "GroupNormalization"): (1, 2),
    ("", "PRelu"): (1,),
    ("", "LSTM"): (1, 2, 3),
    ("", "GRU"): (1, 2, 3),
    ("", "RNN"): (1, 2, 3),
    (_FUSED, "FusedConv"): (1, 2),
    (_FUSED, "FusedGemm"): (0, 1, 2),
    (_FUSED, "FusedMatMul"): (0, 1),
    (_FUSED, "Attention"): (1, 2),
    (_FUSED, "MultiHeadAttention"): (3,),
    (_FUSED, "BiasGelu"): (1,),
    (_FUSED, "FastGelu"): (1,),
    (_FUSED, "SkipLayerNormalization"): (2, 3, 4),
    (_FUSED, "SkipSimplifiedLayerNormalization"): (2, 3),
    (_FUSED, "EmbedLayerNormalization"): (5, 6),
    (_FUSED, "GroupNorm"): (1, 2),
}
"""Slots of weights, biases, scales and shifts, by domain and operator."""

_TABLES: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Gather"): (0,),
    (_FUSED, "EmbedLayerNormalization"): (2, 3, 4),
}
"""Slots of embedding tables."""

_KERNELS = {"Conv", "ConvTranspose", "FusedConv"}
_MATRICES: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Conv"): (1,),
    ("", "ConvTranspose"): (1,),
    ("", "Gemm"): (0, 1),
    ("", "MatMul"): (0, 1),
    ("", "Einsum"): (0, 1),
    (_FUSED, "FusedConv"): (1,),
    (_FUSED, "FusedGemm"): (0, 1),
    (_FUSED, "FusedMatMul"): (0, 1),
    (_FUSED, "Attention"): (1,),
}
"""Slots of weights that multiply as matrices, by domain and operator."""

_NARROW = 2
"""Rows or columns below which a weight is a vector."""

_MOVED = {"Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Slice", "Expand"}
_ROUNDED = {"QuantizeLinear", "DequantizeLinear"}

_LAYERS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
_AFTER_DIVISION = frozenset({"Div", "Mul", "Sub", "Add"})
"""Operators that a normalisation may end with before its scale."""

_NORMALISING = frozenset({"Sqrt", "Reciprocal", "Rsqrt", "Pow"})


def parameters_of(graph: ir.Graph, *, embeddings: bool = False) -> list[str]:
    """Names of the constants that can be trained, in graph order, each once.

    Args:
        graph: the main graph, all of whose constants are initializers.
        embeddings: tables of embeddings as well.
    """
    found: dict[str, None] = {}
    for node in graph:
        for value in _weights(node, embeddings=embeddings):
            found[value.name or ""] = None
    return [name for name in found if name]


_INTEGERS = "integers have no gradient (fine-tune before quantising)"
_INNER = "it is read in a body of Loop, If or Scan"
_INTEGER_READERS = ("DequantizeLinear", "Integer", "QLinear", "QGemm", "NBits", "QAttention")


def matrices_of(graph: ir.Graph, values: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Names of the weights that multiply as matrices: dense kernels, and weights of two axes.

    Args:
        graph: the main graph.
        values: of the weights, by name.
    """
    found: dict[str, None] = {}
    for node in graph:
        slots = _MATRICES.get((node.domain, node.op_type), ())
        if int(node.attributes.get_int("group", 1)) > 1:
            continue
        for slot in slots:
            value = node.inputs[slot] if slot < len(node.inputs) else None
            source = _source(value) if value is not None else None
            weight = values.get(source.name or "") if source is not None else None
            if source is None or weight is None or min(weight.shape[:2]) < _NARROW:
                continue
            if weight.ndim == 2 or node.op_type in _KERNELS:
                found[source.name or ""] = None
    return list(found)


def left_out(graph: ir.Graph) -> dict[str, str]:
    """Weights that cannot be trained wherever gradients reach, by name, with the reason.

    Args:
        graph: the main graph, all of whose constants are initializers.
    """
    found = {
        name: _INTEGERS
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype.is_integer()
        and len(value.const_value.shape) > 1
        and any(part in use.node.op_type for use in value.uses() for part in _INTEGER_READERS)
    }
    for place in places(graph).values():
        for node in place.graph:
            for value in _weights(node, embeddings=False):
                found[value.name or ""] = _INNER
    return {name: reason for name, reason in found.items() if name}


def _weights(node: ir.Node, *, embeddings: bool) -> Iterator[ir.Value]:
    key = (node.domain, node.op_type)
    slots = _SLOTS.get(key, ()) + (_TABLES.get(key, ()) if embeddings else ())
    for slot in slots:
        value = node.inputs[slot] if slot < len(node.inputs) else None
        source = _source(value) if value is not None else None
        if source is not None and _is_trained(source):
            yield source
    if not node.domain and node.op_type in _AFFINE and len(node.inputs) == 2:
        yield from _bias_or_scale(node)


def _bias_or_scale(node: ir.Node) -> Iterator[ir.Value]:
    for value, other in _operands(node):
        source, before = _source(value), _producer(other)
        if source is None or before is None or not (_is_trained(source) and _is_vector(source)):
            continue
        if _AFFINE[node.op_type](before):
            yield source


def _operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Both orders of what a node with two inputs reads."""
    first, second = node.inputs
    if first is not None and second is not None:
        yield first, second
        yield second, first


def _producer(value: ir.Value) -> ir.Node | None:
    """What computes a value, behind operators that only move entries."""
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Cast", "Identity", "Transpose"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node


def _is_layer(node: ir.Node) -> bool:
    """Whether a node has weights; what is added to a product of activations is a mask."""
    return node.op_type in _LAYERS and any(
        value is not None and _source(value) is not None for value in node.inputs
    )


def _takes_shift(node: ir.Node) -> bool:
    """Whether a vector that is added to what a node gives is a bias or a shift.

    A scale between a layer, or a normalisation, and its shift is a vector as well.
    """
    if node.op_type != "Mul":
        return _is_layer(node)
    for value, other in _operands(node):
        source, before = _source(value), _producer(other)
        if source is not None and before is not None and _is_trained(source):
            return _is_vector(source) and (_is_layer(before) or _normalises(before))
    return False


def _normalises(node: ir.Node) -> bool:
    """Whether a node divides by a deviation: x / sqrt(v), or x * (1 / sqrt(v))."""
    if node.op_type not in _AFTER_DIVISION:
        return False
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type in _NORMALISING:
            return True
        if maker is not None and maker.op_type == "Div":
            inner = [v.producer() for v in maker.inputs if v is not None]
            if any(each is not None and each.op_type == "Sqrt" for each in inner):
                return True
    return False


_AFFINE = {"Add": _takes_shift, "Mul": _normalises}
"""What has to come before a constant vector that is added or multiplied."""


def _source(value: ir.Value) -> ir.Value | None:
    """The initializer behind operators that move or round it; None for something computed."""
    while not value.is_initializer():
        node = value.producer()
        if node is None or node.domain or node.op_type not in _MOVED | _ROUNDED:
            return None
        first = node.inputs[0]
        if first is None:
            return None
        value = first
    return value


def _is_trained(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1


def _is_vector(value: ir.Value) -> bool:
    shape = value.const_value.shape.numpy() if value.const_value is not None else ()
    return sum(extent > 1 for extent in shape) == 1


def values_of(model: ir.Model, names: list[str]) -> dict[str, NDArray[np.float32]]:
    """Values of initializers in single precision, not to be written to.

    Args:
        model: has them.
        names: of initializers of its main graph.
    """
    values = {}
    for name in names:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        values[name] = np.asarray(tensor.numpy(), np.float32)
    return values


def with_values(model: ir.Model, values: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    """A copy of a model with other values of some constants, in their own types.

    Args:
        model: unchanged.
        values: by name, of initializers or Constant nodes of its main graph.
    """
    result = model.clone()
    for name, value in result.graph.initializers.items():
        if name in values and value.const_value is not None:
            value.const_value = _like(value.const_value, values[name], name)
    for node in result.graph:
        name = node.outputs[0].name or "" if node.outputs else ""
        if node.op_type == "Constant" and name in values:
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            assert tensor is not None
            made = _like(tensor, values[name], name)
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", made)
    return result


def _like(tensor: ir.TensorProtocol, value: NDArray[np.float32], name: str) -> ir.TensorProtocol:
    return ir.tensor(value.astype(tensor.dtype.numpy(), copy=False), dtype=tensor.dtype, name=name)
