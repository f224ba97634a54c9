"""Running models of any size: one session, or one small session after another.

A session maps or copies every weight it reads, and some of what onnxruntime does when it opens one
takes time that grows with the square of the number of nodes. A model with many weights or nodes is
therefore cut into pieces, runs of nodes in graph order. Each piece becomes a session of its own and
runs on all feeds; what later pieces read is kept in between. When it is the weights that are many,
the session of a piece is gone before the next is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.model.pieces import node_reads, open_piece
from onnxprune.model.runtime import open_session, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnxruntime as ort
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime

__all__ = ["Execution", "is_heavy"]

_WHOLE_BYTES = 512_000_000
_WHOLE_NODES = 8000
_PIECE_BYTES = 128_000_000
_PIECE_NODES = 4000


def is_heavy(model: ir.Model) -> bool:
    """Whether a model has too many weights to be loaded as a whole without need."""
    return sum(map(_bytes, model.graph.initializers.values())) > _WHOLE_BYTES


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
        self._types: dict[str, ir.TypeProtocol | None] = {}
        self._shapes: dict[str, ir.Shape | None] = {}
        passed_on = any(value.is_initializer() for value in model.graph.outputs)
        if not passed_on and (self._heavy or len(model.graph) > _WHOLE_NODES):
            self._pieces = _cut_up(model.graph)
        else:
            self._session = open_session(model, runtime, optimise=optimise, arena=arena, plan=False)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Run once; see `run_all`."""
        return self.run_all([feed])[0]

    def run_all(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, Any]]:
        """Run on every feed and return all outputs by name, as `runtime.run` gives them.

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
            self._types,
            self._runtime,
            shapes=self._shapes,
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
    nodes: list[ir.Node] = []
    weights: set[ir.Value] = set()
    size = 0
    for node in graph:
        new = {value for value in node_reads(node) if value.is_initializer()} - weights
        more = sum(map(_bytes, new))
        if nodes and (size + more > _PIECE_BYTES or len(nodes) >= _PIECE_NODES):
            yield nodes
            nodes, weights, size = [], set(), 0
            new = {value for value in node_reads(node) if value.is_initializer()}
            more = sum(map(_bytes, new))
        nodes.append(node)
        weights |= new
        size += more
    yield nodes


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes
