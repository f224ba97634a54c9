"""Running models of any size in onnxruntime: one session, or one small session after another.

Sessions are silent and do not copy external weights. A session maps or copies every weight it
reads, and some of what onnxruntime does when it opens one takes time that grows with the square of
the number of nodes. A model with many weights or nodes is therefore cut into pieces, runs of nodes
in graph order. Each piece becomes a session of its own and runs on all feeds; what later pieces
read is kept in between. Where the weights are many, the session of a piece is closed before the
next is opened.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.model.bodies import read_from_outside, subgraphs
from onnxprune.model.inputs import part_version
from onnxprune.model.protobuf import declare, serialise, to_proto, write_part
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import save
from onnxprune.model.tensors import external_initializers, initializer_bytes, inline_bytes

_FATAL = 4  # log level of onnxruntime
# Error codes, and places in the source code of onnxruntime.
_NOISE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |"
    r"\S*onnxruntime_src\S+ .*?\)>?(?: const)?(?: \[with .*?\])? (?=[A-Z]|\w+ [=!<>]{1,2} )"
)
_INLINE_BYTES = 64_000_000  # more go through a file, which is mapped instead of copied
_NO_PREPACKING = "session.disable_prepacking"
_NO_SPINNING_ON = "session.force_spinning_stop"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    model: ir.Model | onnx.ModelProto,
    runtime: Runtime,
    *,
    optimise: bool = True,
    arena: bool = True,
    memory: Literal["planned", "unplanned", "brief"] = "planned",
    alternating: bool = False,
    profile: str = "",
) -> ort.InferenceSession:
    """Load a model into onnxruntime.

    Weights in external data files are mapped from there. A model whose other weights are many, or
    whose data files lie in several folders, goes through a temporary copy that is mapped too.

    Args:
        model: unchanged; a ModelProto has to carry its weights.
        runtime: providers and threads.
        optimise: False runs the nodes exactly as written (ORT_DISABLE_ALL).
        arena: False gives memory back after each run, for large activations.
        memory: "unplanned" allocates each tensor when it is computed: onnxruntime's planning takes
            time that grows with the square of the number of nodes, 27 s for 16,000. "brief", for a
            few runs, also leaves weights where they are mapped instead of copying them into the
            layout of the kernels.
        profile: how the file begins that the profile is to be written to; "" for no profile.
        alternating: True lets threads rest as soon as a run is over: waiting for the next one they
            would take the time of the session that runs in between.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = arena
    options.enable_mem_reuse = options.enable_mem_pattern = memory == "planned"
    options.intra_op_num_threads = runtime.threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if alternating:
        options.add_session_config_entry(_NO_SPINNING_ON, "1")
    if memory == "brief":
        options.add_session_config_entry(_NO_PREPACKING, "1")
    if isinstance(model, ir.Model):
        folders = {os.path.abspath(tensor.base_dir) for tensor in external_initializers(model)}
        if len(folders) > 1 or inline_bytes(model) > _INLINE_BYTES:
            return _open_through_file(model, options, runtime)
        for folder in folders:
            options.add_session_config_entry(_EXTERNAL_FOLDER, folder)
        proto = to_proto(model)
    else:
        proto = model
    try:
        data = serialise(proto)
    except ValueError as error:
        raise RuntimeFailure(f"the model cannot be serialised: {_first_line(error)}") from error
    return _create(data, options, runtime)


def run(
    session: ort.InferenceSession,
    feed: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Run a session once.

    Args:
        session: as opened by `open_session`.
        feed: arrays by input name; bfloat16 and float8 arrays as ml_dtypes.
        outputs: names of the outputs wanted, None for all.

    Returns:
        Arrays by output name; an output that is a sequence or map comes as onnxruntime gives it.

    Raises:
        RuntimeFailure: with the first line of onnxruntime's message.
    """
    names = list(outputs) if outputs is not None else [out.name for out in session.get_outputs()]
    types = [value.type for value in (*session.get_inputs(), *session.get_outputs())]
    try:
        if any(_numpy_lacks(text) for text in types):
            return _run_with_values(session, feed, names)
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:
        raise RuntimeFailure(f"onnxruntime cannot run the model: {_first_line(error)}") from error


def _create(
    source: bytes | str, options: ort.SessionOptions, runtime: Runtime
) -> ort.InferenceSession:
    try:
        # the fallback would print, and try the same providers once more
        return ort.InferenceSession(
            source, options, providers=list(runtime.providers), enable_fallback=0
        )
    except Exception as error:
        raise RuntimeFailure(f"onnxruntime refuses the model: {_first_line(error)}") from error


def _open_through_file(
    model: ir.Model, options: ort.SessionOptions, runtime: Runtime
) -> ort.InferenceSession:
    folder = tempfile.mkdtemp(prefix="onnxprune-")
    try:
        path = Path(folder) / "model.onnx"
        save(model, path, scratch=True)
        session = _create(str(path), options, runtime)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # The session maps the weights; POSIX lets the files go at once, Windows only afterwards.
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        weakref.finalize(session, shutil.rmtree, folder, ignore_errors=True)
    return session


def _numpy_lacks(type_text: str) -> bool:
    """Say whether onnxruntime cannot exchange this tensor type as a plain numpy array."""
    return "bfloat16" in type_text or "float8" in type_text


def element_type(type_text: str) -> ir.DataType:
    """Turn onnxruntime's "tensor(bfloat16)" into the ONNX data type."""
    return ir.DataType[type_text.removeprefix("tensor(").removesuffix(")").upper()]


def _run_with_values(
    session: ort.InferenceSession, feed: Mapping[str, npt.NDArray[Any]], names: list[str]
) -> dict[str, npt.NDArray[Any]]:
    """Run through OrtValues, passing the bits of types that onnxruntime's numpy bridge lacks."""
    types = {value.name: value.type for value in session.get_inputs()}
    values = {}
    for name, array in feed.items():
        if _numpy_lacks(types.get(name, "")):
            dtype = element_type(types[name])
            bits = np.asarray(array, dtype.numpy(), order="C")
            unsigned = np.uint16 if dtype.itemsize == 2 else np.uint8
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                bits.view(unsigned), int(dtype)
            )
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    results = session.run_with_ort_values(names, values)
    return {name: _to_numpy(value) for name, value in zip(names, results, strict=True)}


def _to_numpy(value: ort.OrtValue) -> npt.NDArray[Any]:
    if not _numpy_lacks(value.data_type()):
        array: npt.NDArray[Any] = value.numpy()
        return array
    dtype = element_type(value.data_type())
    bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bits, dtype.numpy()).reshape(value.shape())


def _first_line(error: BaseException) -> str:
    lines = _NOISE.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def node_reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values made around a node that it or its subgraphs read."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        yield from read_from_outside(graph).values()


@dataclass
class KnownValues:
    """What onnxruntime says of values, by name.

    Attributes:
        types: of the values.
        shapes: as far as they are known; without them the layout optimisation of large pieces
            takes quadratic time.
    """

    types: dict[str, ir.TypeProtocol | None]
    shapes: dict[str, ir.Shape | None] = field(default_factory=dict)


def open_piece(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    names: Sequence[str],
    known: KnownValues,
    runtime: Runtime,
    *,
    optimise: bool = True,
    brief: bool = False,
) -> tuple[ort.InferenceSession, list[str]]:
    """Open a session of some nodes.

    Args:
        model: the model they are part of.
        nodes: in graph order.
        names: values they make that are wanted.
        known: types and shapes of values; those of the wanted ones are added.
        runtime: how to run them.
        optimise: False runs the nodes exactly as written.
        brief: for a session that runs a few times: weights stay mapped, memory is not planned.

    Returns:
        the session and the names of its inputs.

    Raises:
        RuntimeFailure: when onnxruntime refuses them.
    """
    reads = _outside(nodes)
    weights = [value.const_value for value in reads if value.is_initializer()]
    heavy = sum(tensor.nbytes for tensor in weights if tensor is not None) > _INLINE_BYTES
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in weights)
    piece: ir.Model | onnx.ModelProto
    if heavy or external or model.functions:
        piece, inputs = piece_of(model, nodes, names, known)
    else:
        piece, inputs = _message_of(model, nodes, names, known, reads)
    session = open_session(
        piece, runtime, optimise=optimise, arena=False, memory="brief" if brief else "planned"
    )
    symbols = {dim for value in model.graph.inputs for dim in _named(value.shape)}
    for output in session.get_outputs():
        tensor = output.type.startswith("tensor")
        known.types[output.name] = _parsed(output.type)
        known.shapes[output.name] = _shape(output.name, output.shape, symbols) if tensor else None
    return session, inputs


def piece_of(
    model: ir.Model, nodes: Sequence[ir.Node], names: Sequence[str], known: KnownValues
) -> tuple[ir.Model, list[str]]:
    """Copy some nodes into a model of their own.

    Args:
        model: the model they are part of; they may be those of a body.
        nodes: in graph order, all in one graph.
        names: values they make that are wanted.
        known: types and shapes of values from around them.

    Returns:
        the model and the names of its inputs.
    """
    read = _outside(nodes)
    inputs = [value for value in read if not value.is_initializer()]
    view = ir.GraphView(
        inputs,
        _made(nodes, names),
        nodes=nodes,
        initializers=[value for value in read if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    graph = view.clone()
    for node in graph:
        for value in node.outputs:
            value.shape = None  # what was declared in between may be wrong
    for value in graph.inputs:
        if value.name and value.name in known.types:
            value.type, value.shape = known.types[value.name], known.shapes.get(value.name)
    functions = list(model.functions.values())
    piece = ir.Model(graph, ir_version=part_version(model), functions=functions)
    return piece, [value.name or "" for value in inputs]


def _message_of(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    names: Sequence[str],
    known: KnownValues,
    read: Sequence[ir.Value],
) -> tuple[onnx.ModelProto, list[str]]:
    """The same as a message that carries its weights; `read` is what the nodes do not make."""
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in sorted(model.graph.opset_imports.items())]
    proto = onnx.ModelProto(ir_version=part_version(model), opset_import=opsets)
    proto.graph.name = model.graph.name or ""
    write_part(proto.graph, nodes, read, _made(nodes, names))
    for info in proto.graph.input:
        if info.name in known.types:
            declare(info, known.types[info.name], known.shapes.get(info.name))
    return proto, [value.name or "" for value in read if not value.is_initializer()]


def _outside(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Values that nodes read and do not make, in the order in which they are first read."""
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node_reads(node))
    return [value for value in read if value not in made]


def _made(nodes: Sequence[ir.Node], names: Sequence[str]) -> list[ir.Value]:
    """Values of some names that nodes make."""
    by_name = {value.name: value for node in nodes for value in node.outputs}
    return [by_name[name] for name in names]


def _named(shape: ir.Shape | None) -> list[str]:
    dims = () if shape is None else shape.dims
    return [dim.value for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value]


def _shape(name: str, inferred: Sequence[Any], symbols: Set[str]) -> ir.Shape | None:
    """The shape onnxruntime inferred.

    Names that onnxruntime generates mean something else in each session, so they are replaced.
    """
    dims = [
        dim if isinstance(dim, int) or dim in symbols else f"{name}/{axis}"
        for axis, dim in enumerate(inferred)
    ]
    # no dimensions are those of a scalar, or unknown
    return ir.Shape(dims) if dims else None


def _parsed(text: str) -> ir.TypeProtocol | None:
    """Turn onnxruntime's "seq(tensor(float))" into a type; None for maps."""
    kind, _, rest = text.partition("(")
    inner = rest.removesuffix(")")
    if kind == "tensor":
        return ir.TensorType(element_type(text))
    kinds = {"seq": ir.SequenceType, "optional": ir.OptionalType}
    element = _parsed(inner) if kind in kinds else None
    return None if element is None else kinds[kind](element)


# weights and nodes up to which a model runs as a whole, and those of a piece of a larger one
_WHOLE_BYTES, _WHOLE_NODES = 512_000_000, 8000
_PIECE_BYTES, _PIECE_NODES = 128_000_000, 4000


def is_heavy(model: ir.Model) -> bool:
    """Whether a model has too many weights to be loaded as a whole without need."""
    return _weights(model.graph) > _WHOLE_BYTES


def _weights(graph: ir.Graph) -> int:
    """Bytes of the weights of a graph."""
    return sum(map(initializer_bytes, graph.initializers.values()))


class Execution:
    """A model ready to run.

    Args:
        model: must not change while it is in use here.
        runtime: providers and threads.
        optimise: False runs the nodes exactly as written.
        arena: False gives memory back after each run.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model (a piece is opened when it is run).
    """

    def __init__(
        self, model: ir.Model, runtime: Runtime, *, optimise: bool = True, arena: bool = True
    ) -> None:
        self._model = model
        self._runtime = runtime
        self._optimise = optimise
        self._pieces: list[_Piece] = []
        self._session: ort.InferenceSession | None = None
        self._heavy = is_heavy(model)
        self._sessions: dict[int, tuple[ort.InferenceSession, list[str]]] = {}
        self._known = KnownValues({})
        passed_on = any(value.is_initializer() for value in model.graph.outputs)
        if not passed_on and (self._heavy or len(model.graph) > _WHOLE_NODES):
            self._pieces = _cut_up(model.graph)
        else:
            self._session = open_session(
                model, runtime, optimise=optimise, arena=arena, memory="unplanned"
            )

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Run once; see `run_all`."""
        return self.run_all([feed])[0]

    def run_all(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, Any]]:
        """Run on every feed and return all outputs by name, as `run` gives them.

        Raises:
            RuntimeFailure: when onnxruntime refuses a piece or a feed.
        """
        if self._session is not None:
            return [run(self._session, feed) for feed in feeds]
        wanted = [value.name or "" for value in self._model.graph.outputs]
        known: list[dict[str, Any]] = [dict(feed) for feed in feeds]
        for number, piece in enumerate(self._pieces):
            if piece.makes:
                session, reads = self._opened(number)
                for values in known:
                    values |= run(session, {name: values[name] for name in reads if name in values})
                if not self._heavy:
                    self._sessions[number] = session, reads
                del session
            for values in known:
                for name in piece.done:
                    values.pop(name, None)
        return [{name: values[name] for name in wanted} for values in known]

    def _opened(self, number: int) -> tuple[ort.InferenceSession, list[str]]:
        """The session of a piece, and what it reads; only the caller keeps it alive."""
        if number in self._sessions:
            return self._sessions.pop(number)
        piece = self._pieces[number]
        return open_piece(
            self._model,
            piece.nodes,
            piece.makes,
            self._known,
            self._runtime,
            optimise=self._optimise,
            brief=True,
        )


@dataclass(frozen=True)
class _Piece:
    """Nodes that run together.

    Attributes:
        nodes: in graph order.
        makes: names of what they make for pieces after, and for the caller.
        done: names that nothing reads after this piece.
    """

    nodes: list[ir.Node]
    makes: list[str]
    done: list[str]


def _cut_up(graph: ir.Graph) -> list[_Piece]:
    runs = list(_runs(graph))
    reads = [dict.fromkeys(value for node in nodes for value in node_reads(node)) for nodes in runs]
    last = {value: number for number, read in enumerate(reads) for value in read}
    returned = set(graph.outputs)
    pieces = []
    for number, (nodes, read) in enumerate(zip(runs, reads, strict=True)):
        made = dict.fromkeys(value for node in nodes for value in node.outputs)
        makes = [v for v in made if last.get(v, number) > number or v in returned]
        done = [v for v in read if last[v] == number and v not in returned]
        pieces.append(_Piece(nodes, [v.name or "" for v in makes], [v.name or "" for v in done]))
    return pieces


def _runs(graph: ir.Graph) -> Iterator[list[ir.Node]]:
    """Split the nodes where one more would bring too many weights or nodes together."""
    if _weights(graph) <= _PIECE_BYTES:
        every = list(graph)
        yield from (every[i : i + _PIECE_NODES] for i in range(0, len(every), _PIECE_NODES))
        return
    nodes: list[ir.Node] = []
    weights: set[ir.Value] = set()
    size = 0
    for node in graph:
        new = {value for value in node_reads(node) if value.is_initializer()} - weights
        more = sum(map(initializer_bytes, new))
        if nodes and (size + more > _PIECE_BYTES or len(nodes) >= _PIECE_NODES):
            yield nodes
            nodes, weights, size = [], set(), 0
            new = {value for value in node_reads(node) if value.is_initializer()}
            more = sum(map(initializer_bytes, new))
        nodes.append(node)
        weights |= new
        size += more
    yield nodes
