"""Any kind of ONNX model in, an onnx-ir model that may be changed out, and the way back.

onnx-graphsurgeon does not know node metadata, dimension denotations or initializers that are also
graph inputs, so those are lost in a graph that comes back; the computation is the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxprune.errors import InputError, first_line
from onnxprune.model.inlined import InlinedConstant, inlined_constants
from onnxprune.model.protobuf import (
    LARGEST_MESSAGE,
    from_proto,
    is_large,
    parse,
    serialise,
    skeleton,
    to_proto,
)
from onnxprune.model.save import model_bytes
from onnxprune.model.tensors import (
    adopt_external_data,
    external_initializers,
    fill_in,
    initializers,
    mark_filled,
    swapped,
)
from onnxprune.model.wellformed import check_wellformed

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


ModelKind: TypeAlias = Literal["path", "proto", "ir", "graphsurgeon"]
ModelSource: TypeAlias = Union[
    str, "os.PathLike[str]", onnx.ModelProto, ir.Model, "gs.Graph"
]  # a string of gs.Graph keeps onnx_graphsurgeon unimported

_OTHER_FORMATS = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch or Keras checkpoint?); export it to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file; export it to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite model; convert it to ONNX first"),
    (4, b"ORTM", "an onnxruntime .ort model; prune the .onnx file it was made from"),
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the model with 'git lfs pull'"),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model as onnxprune works on it.

    Attributes:
        model: ours to change; tensors may be shared with the caller's object, so an initializer
            is replaced by another value rather than renamed.
        kind: what the caller gave, and gets back.
        path: the file, None for the other kinds.
        sha256: hexadecimal digest of the file's bytes, or of the serialised model.
        inlined: name -> origin of the constants that were inside local functions.
    """

    model: ir.Model
    kind: ModelKind
    path: Path | None
    sha256: str
    inlined: Mapping[str, InlinedConstant] = field(default_factory=dict)


def load(source: ModelSource) -> LoadedModel:
    """Read a model; external data stays where it is, calls of local functions are inlined.

    Args:
        source: a path, onnx.ModelProto, ir.Model or onnx_graphsurgeon Graph. It is never changed.

    Raises:
        InputError: when it cannot be read or is not an ONNX model onnxprune can handle.
    """
    loaded = _load(source)
    inlined = inlined_constants(loaded.model, _inline)
    _drop_empty_biases(loaded.model)
    return replace(loaded, inlined=inlined)


def _inline(model: ir.Model) -> None:
    inline_functions(model)
    make_names_unique(model)


def _load(source: ModelSource) -> LoadedModel:
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source))
    if isinstance(source, onnx.ModelProto):
        return _load_proto(source, "proto", "the ModelProto")
    if isinstance(source, ir.Model):
        return _load_ir(source)
    if type(source).__module__.partition(".")[0] == "onnx_graphsurgeon":
        return _load_proto(graph_to_proto(source), "graphsurgeon", "the graphsurgeon graph")
    raise InputError(
        "a model is a path, an onnx.ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph, "
        f"not {type(source).__name__}"
    )


def convert(model: ir.Model, kind: ModelKind) -> onnx.ModelProto | ir.Model | gs.Graph:
    """Turn a model back into the kind of object the caller gave.

    Args:
        model: the model; unchanged.
        kind: "path" and "ir" give the ir.Model itself; "proto" and "graphsurgeon" objects carry
            all their weights in memory.
    """
    if kind in ("path", "ir"):
        return model
    if kind == "graphsurgeon":
        return from_ir(model)
    in_memory = {
        value: ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype)
        for value in initializers(model)
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    with swapped(in_memory):
        return to_proto(model)


def fingerprint(model: ir.Model) -> str:
    """Return a SHA-256 of graph and weights, in hexadecimal; equal models, equal digests.

    Weights are read one at a time. External data enters by its location only.
    """
    digest = hashlib.sha256(serialise(skeleton(model)))
    for value in initializers(model):
        tensor = value.const_value
        if tensor is not None and is_large(tensor):
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def _load_file(path: Path) -> LoadedModel:
    data = _read(path)
    try:
        proto = parse(data)
    except ValueError:
        raise InputError(f"{path}: {_not_onnx(data)}") from None
    if not proto.HasField("graph"):
        raise InputError(f"{path}: {_not_onnx(data)}")
    sha256 = hashlib.sha256(data).hexdigest()
    del data
    sparse = fill_in(proto, str(path))
    check_wellformed(proto, str(path))
    model = _deserialise(proto, str(path))
    mark_filled(model, sparse)
    ir.external_data.set_base_dir(model.graph, path.absolute().parent)
    for function in model.functions.values():
        ir.external_data.set_base_dir(function.graph, path.absolute().parent)
    adopt_external_data(model, str(path))
    return LoadedModel(model, "path", path, sha256)


def _load_proto(proto: onnx.ModelProto, kind: ModelKind, name: str) -> LoadedModel:
    original = proto
    sparse: set[str] = set()
    if proto.graph.sparse_initializer:
        proto = onnx.ModelProto()
        proto.CopyFrom(original)
        sparse = fill_in(proto, name)
    check_wellformed(proto, name)
    model = _deserialise(proto, name)
    mark_filled(model, sparse)
    _own_constants(model)
    if external_initializers(model):
        raise InputError(
            f"{name} was loaded without its external data; give the path of its file instead"
        )
    adopt_external_data(model, name)
    try:
        sha256 = hashlib.sha256(serialise(original)).hexdigest()
    except ValueError:  # more than 2 GB
        sha256 = fingerprint(model)
    return LoadedModel(model, kind, None, sha256)


def _load_ir(source: ir.Model) -> LoadedModel:
    name = "the ir.Model"
    try:
        hollow = skeleton(source)
    except Exception as error:
        raise InputError(f"{name} cannot be serialised: {_root_cause(error)}") from error
    check_wellformed(hollow, name)
    try:
        model = source.clone()
    except Exception as error:
        raise InputError(f"{name} cannot be copied: {_root_cause(error)}") from error
    _own_constants(model)
    adopt_external_data(model, name)
    return LoadedModel(model, "ir", None, fingerprint(model))


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the .onnx file in it")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: is empty; export the model again")
    if size > LARGEST_MESSAGE:
        raise InputError(
            f"{path}: is larger than the 2 GB an ONNX file can hold; "
            "store the weights as external data"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _not_onnx(data: bytes) -> str:
    for offset, magic, what in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            return f"is not ONNX but {what}"
    start = data[:1024]
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "is a text file, not a binary ONNX model"
    return "is not a readable ONNX model (truncated, or another format); copy or export it again"


def _deserialise(proto: onnx.ModelProto, name: str) -> ir.Model:
    try:
        model = from_proto(proto)
        model.graph.sort()
        # a damaged string shows only when it is written
        skeleton(model)
    except Exception as error:
        raise InputError(f"{name}: cannot be read: {_root_cause(error)}") from error
    return model


def _own_constants(model: ir.Model) -> None:
    """Give Constant nodes tensors of their own: onnx-ir names them after the output in passing."""
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    for node in (node for graph in graphs for node in graph.all_nodes()):
        value = node.attributes.get("value") if node.op_type == "Constant" else None
        if value is None or value.is_ref() or value.type != ir.AttributeType.TENSOR:
            continue
        tensor = value.as_tensor()
        if isinstance(tensor, ir.TensorProtoTensor):
            proto = onnx.TensorProto()
            proto.CopyFrom(tensor.raw)
            own: ir.TensorProtocol = ir.TensorProtoTensor(proto)
        else:
            own = copy(tensor)
        node.attributes["value"] = ir.AttrTensor("value", own, doc_string=value.doc_string)


def _drop_empty_biases(model: ir.Model) -> None:
    """Omit a bias that is given as an empty name: the optimiser of onnxruntime crashes on it."""
    for node in model.graph.all_nodes():
        if node.op_type == "LayerNormalization" and len(node.inputs) == 3 and not node.inputs[2]:
            node.resize_inputs(2)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the innermost message; onnx-ir's outer ones quote whole graphs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:300]


def inline_functions(model: ir.Model) -> bool:
    """Inline every call of a local function, in place; False when that is not possible.

    A function that imports another version of a domain than the model keeps its calls: its ops
    could mean something else there. Constants inside a body become Constants of the main graph,
    named after the call.
    """
    if not model.functions:
        return False
    own = {domain for domain, _, _ in model.functions}
    for function in model.functions.values():
        for domain in own & function.opset_imports.keys():
            # Functions have no versions of their own: what they declare here says nothing.
            function.opset_imports[domain] = model.opset_imports.setdefault(domain, 1)
        for domain, version in function.opset_imports.items():
            if model.opset_imports.setdefault(domain, version) != version:
                return False
    try:
        return bool(InlinePass()(model).modified)
    except (ValueError, ir.passes.InvariantError):  # recursion, references to no attribute
        return False


def make_names_unique(model: ir.Model) -> None:
    """Rename values of bodies whose names occur in another graph as well.

    The names of the main graph, its interface among them, stay as they are.

    Args:
        model: changed in place.
    """
    bodies = list(model.graph.subgraphs())
    if not bodies:
        return
    values = [value for graph in bodies for value in _values(graph)]
    taken = {value.name for value in _values(model.graph)}
    reserved = taken | {value.name for value in values}
    for value in values:
        if value.name in taken:
            value.name = _free(value.name or "", reserved)
            reserved.add(value.name)
        taken.add(value.name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values with a name that a graph itself makes."""
    constants = list(graph.initializers.values())
    yield from dict.fromkeys(value for value in (*graph.inputs, *constants) if value.name)
    yield from (value for node in graph for value in node.outputs if value.name)


def _free(name: str, reserved: set[str | None]) -> str:
    number = 2
    while f"{name}_{number}" in reserved:
        number += 1
    return f"{name}_{number}"


def loaded_bytes(loaded: LoadedModel) -> int:
    """Bytes of a model as it was given: its file with external data, or what saving would take."""
    if loaded.path is None:
        return model_bytes(loaded.model)
    outside = sum(tensor.nbytes for tensor in external_initializers(loaded.model))
    return loaded.path.stat().st_size + outside


def graph_to_proto(graph: gs.Graph) -> onnx.ModelProto:
    """Export a graphsurgeon graph, all weights in memory.

    Raises:
        InputError: when graphsurgeon cannot export it.
    """
    import onnx_graphsurgeon as gs

    try:
        proto: onnx.ModelProto = gs.export_onnx(graph)
    except Exception as error:
        raise InputError(
            f"onnx-graphsurgeon cannot export the graph: {first_line(error)}"
        ) from error
    for tensor in proto.graph.initializer:
        # graphsurgeon keeps the mark of a constant whose values it has already read
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not tensor.external_data:
            tensor.data_location = onnx.TensorProto.DEFAULT
    return proto


def from_ir(model: ir.Model) -> gs.Graph:
    """Turn an onnx-ir model into a graphsurgeon graph, all weights in memory."""
    import onnx_graphsurgeon as gs

    in_memory = ir.external_data.load_to_model(model.clone())
    return gs.import_onnx(to_proto(in_memory))
