"""What a ModelProto must satisfy before onnx-ir reads it: versions, names, tensor sizes.

onnx-ir is lenient where onnxprune cannot be: a node input nobody produces becomes a fresh value,
an output nobody produces a warning. Here each of those is one clear line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir

from onnxprune.errors import InputError

OLDEST_OPSET = 7
_OLDEST_IR_VERSION = 3
_LARGEST_DIVISOR = 2**31 - 1  # onnxruntime reads the attribute into an int32
_DEFAULT_DOMAINS = ("", "ai.onnx")
# onnxruntime divides by them unseen, which ends the process.
_DIVIDING_ATTRIBUTES = ("group", "blocksize", "q_num_heads", "kv_num_heads")
_CONSTANT_ATTRIBUTES = {
    "value": onnx.AttributeProto.TENSOR,
    "value_float": onnx.AttributeProto.FLOAT,
    "value_floats": onnx.AttributeProto.FLOATS,
    "value_int": onnx.AttributeProto.INT,
    "value_ints": onnx.AttributeProto.INTS,
    "value_string": onnx.AttributeProto.STRING,
    "value_strings": onnx.AttributeProto.STRINGS,
    "sparse_value": onnx.AttributeProto.SPARSE_TENSOR,
}


def check_wellformed(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a model that onnxprune could not handle faithfully.

    Args:
        proto: the model; its external data is not looked at.
        name: how messages call the model, usually the path of its file.

    Raises:
        InputError: with one line that says what is wrong and what to do.
    """
    if not proto.HasField("graph"):
        raise InputError(f"{name}: holds no ONNX graph (truncated, or not an ONNX model)")
    if not proto.opset_import:
        raise InputError(f"{name}: declares no opset (truncated?); export the model again")
    if not proto.graph.node:
        raise InputError(f"{name}: the graph has no nodes, so there is nothing to prune")
    _check_versions(proto, name)
    _check_graph(proto.graph, (), name)
    for function in proto.functions:
        _check_nodes(function.node, set(function.input), (), function.output, name)


def _check_versions(proto: onnx.ModelProto, name: str) -> None:
    known_opset, older = onnx.defs.onnx_opset_version(), ", or export with an older opset"
    opsets = (entry.version for entry in proto.opset_import if entry.domain in _DEFAULT_DOMAINS)
    for says, version, oldest, newest, remedy in (
        ("has IR version", proto.ir_version, _OLDEST_IR_VERSION, int(onnx.IR_VERSION), ""),
        *(("uses opset", version, OLDEST_OPSET, known_opset, older) for version in opsets),
    ):
        if version > newest:
            raise InputError(
                f"{name}: {says} {version}, the installed onnx {onnx.__version__} knows up to "
                f"{newest}; upgrade onnx{remedy}"
            )
        if version < oldest:
            raise InputError(
                f"{name}: {says} {version}, the oldest supported is {oldest}; "
                "convert the model with onnx.version_converter"
            )


def _check_graph(graph: onnx.GraphProto, outer: Sequence[set[str]], name: str) -> None:
    if graph.sparse_initializer:
        sparse = graph.sparse_initializer[0].values.name or "(unnamed)"
        raise InputError(
            f"{name}: has the sparse initializer {sparse!r}, which is not supported; "
            "store the tensor densely"
        )
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    for kind, names in (("graph input", inputs), ("initializer", initializers)):
        duplicate = _first_duplicate(names)
        if duplicate is not None:
            raise InputError(f"{name}: has two {kind}s called {duplicate!r}; export it again")
    for tensor in graph.initializer:
        _check_tensor(tensor, name)
    outputs = [value.name for value in graph.output]
    _check_nodes(graph.node, {*inputs, *initializers}, outer, outputs, name)


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    known: set[str],
    outer: Sequence[set[str]],
    outputs: Iterable[str],
    name: str,
) -> None:
    for node in nodes:
        for output in filter(None, node.output):
            if output in known:
                raise InputError(
                    f"{name}: the tensor {output!r} is produced twice, the second time by "
                    f"{_describe(node)}; export it again"
                )
            known.add(output)
    scopes = [known, *outer]
    for node in nodes:
        for read in filter(None, node.input):
            if not any(read in scope for scope in scopes):
                raise InputError(
                    f"{name}: {_describe(node)} reads {read!r}, which nothing produces; "
                    "export it again"
                )
        for subgraph in _subgraphs(node):
            _check_graph(subgraph, scopes, name)
        _check_constant(node, name)
        if node.op_type == "Split" and not all(node.output):
            # onnxruntime writes every part, also to an output that is not there
            raise InputError(f"{name}: {_describe(node)} leaves out a part; export it again")
        for attribute in node.attribute:
            if attribute.name in _DIVIDING_ATTRIBUTES and node.domain in _DEFAULT_DOMAINS:
                _check_divisor(attribute, node, name)
        duplicate = _first_duplicate(attribute.name for attribute in node.attribute)
        if duplicate is not None:
            raise InputError(f"{name}: {_describe(node)} has two attributes called {duplicate!r}")
        for attribute in node.attribute:
            if attribute.type in (
                onnx.AttributeProto.SPARSE_TENSOR,
                onnx.AttributeProto.SPARSE_TENSORS,
            ):
                raise InputError(
                    f"{name}: {_describe(node)} holds a sparse tensor, which is not supported; "
                    "store it densely"
                )
            if attribute.type == onnx.AttributeProto.TENSOR and not attribute.ref_attr_name:
                _check_tensor(attribute.t, name)
    for output in outputs:
        if output not in known:
            raise InputError(f"{name}: nothing produces the output {output!r}; export it again")


def _check_divisor(attribute: onnx.AttributeProto, node: onnx.NodeProto, name: str) -> None:
    number = attribute.type == onnx.AttributeProto.INT and not attribute.ref_attr_name
    if number and not 0 < attribute.i <= _LARGEST_DIVISOR:
        raise InputError(
            f"{name}: {_describe(node)} has {attribute.name}={attribute.i}, which has to be a "
            "positive number; export it again"
        )


def _check_constant(node: onnx.NodeProto, name: str) -> None:
    """Refuse a Constant node without exactly one value and one output."""
    if node.op_type != "Constant" or node.domain not in _DEFAULT_DOMAINS:
        return
    kinds = [_CONSTANT_ATTRIBUTES.get(attribute.name) for attribute in node.attribute]
    if len(kinds) != 1 or len(node.output) != 1 or kinds[0] != node.attribute[0].type:
        raise InputError(
            f"{name}: {_describe(node)} has to have one value and one output; export it again"
        )


def _check_tensor(tensor: onnx.TensorProto, name: str) -> None:
    """Refuse an inline tensor whose data does not fill its shape."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        raise InputError(
            f"{name}: the tensor {tensor.name!r} has the unknown data type {tensor.data_type}; "
            "upgrade onnx"
        ) from None
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{name}: the tensor {tensor.name!r} has the shape {list(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    count = math.prod(tensor.dims)
    if dtype == ir.DataType.UNDEFINED or (dtype == ir.DataType.STRING and tensor.raw_data):
        raise InputError(
            f"{name}: the tensor {tensor.name!r} has no data type its data could be of; "
            "the file is damaged, export it again"
        )
    if tensor.HasField("raw_data"):
        expected, got = math.ceil(count * dtype.bitwidth / 8), len(tensor.raw_data)
    else:
        # entries below a byte share an element, complex ones have two
        bits = 8 if dtype == ir.DataType.STRING else min(dtype.bitwidth, 8)
        parts = 2 if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128) else 1
        expected = math.ceil(count * bits / 8) * parts
        got = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    if got != expected:
        raise InputError(
            f"{name}: the tensor {tensor.name!r} of shape {list(tensor.dims)} holds {got} "
            f"{'bytes' if tensor.HasField('raw_data') else 'elements'} instead of {expected}; "
            "the file is damaged, export it again"
        )


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS and not attribute.ref_attr_name:
            yield from attribute.graphs


def _first_duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _describe(node: onnx.NodeProto) -> str:
    return f"the {node.op_type} node {node.name!r}" if node.name else f"a {node.op_type} node"
