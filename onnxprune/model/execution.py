"""Running models of any size: one session, or one small session after another.

A session maps or copies every weight it reads, and onnxruntime's own time grows with the square of
the number of nodes. A model with many weights or nodes is therefore cut into pieces, runs of nodes
in graph order. Each piece becomes a session of its own, runs on all feeds, and is gone before the
next is opened; what later pieces read is kept in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.model.runtime import (
    from_values,
    open_session,
    run,
    run_values,
    to_values,
    type_of,
)

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime

__all__ = ["Execution", "is_large", "weight_bytes"]

_WHOLE_BYTES = 512_000_000
_WHOLE_NODES = 2000
_PIECE_BYTES = 128_000_000
_PIECE_NODES = 1000


def weight_bytes(graph: ir.Graph) -> int:
    """Bytes of the initializers of a graph, subgraphs left out."""
    tensors = (value.const_value for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def is_large(model: ir.Model) -> bool:
    """Whether a model has too many weights to be loaded as a whole without need."""
    return weight_bytes(model.graph) > _WHOLE_BYTES


class Execution:
    """A model ready to run.

    Args:
        model: must not change while it is in use here.
        runtime: providers and threads.
        optimise: False runs the nodes exactly as written.
        arena: False gives memory back after each run.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model (one run in pieces is refused when it
            is run).
    """

    def __init__(
        self, model: ir.Model, runtime: Runtime, *, optimise: bool = True, arena: bool = True
    ) -> None:
        self.model = model
        self.runtime = runtime
        self.optimise = optimise
        self.arena = arena
        self._session: ort.InferenceSession | None = None
        self._pieces: list[list[ir.Node]] = []
        if is_large(model) or len(model.graph) > _WHOLE_NODES:
            self._pieces = list(_pieces(model.graph))
        else:
            self._session = open_session(model, runtime, optimise=optimise, arena=arena)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Run once; see `run_all`."""
        return self.run_all([feed])[0]

    def run_all(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, Any]]:
        """Run on every feed and return all outputs by name.

        Raises:
            RuntimeFailure: when onnxruntime refuses a piece or a feed.
        """
        if self._session is not None:
            return [run(self._session, feed) for feed in feeds]
        wanted = [value.name or "" for value in self.model.graph.outputs]
        last = _last_reads(self._pieces)
        values = [to_values(feed, _declared(self.model.graph)) for feed in feeds]
        results: list[dict[str, Any]] = [{} for _ in feeds]
        for number, nodes in enumerate(self._pieces):
            read, made = _border(nodes, values[0].keys())
            needed = [name for name in made if last.get(name, -1) > number or name in wanted]
            if not needed:
                continue
            known = {name: type_of(values[0][name]) for name in read}
            session = self._open(known, needed)
            for one, result in zip(values, results, strict=True):
                got = run_values(session, {name: one[name] for name in read}, needed)
                result |= from_values({k: v for k, v in got.items() if k in wanted})
                one |= {k: v for k, v in got.items() if last.get(k, -1) > number}
                for name in [name for name in one if last.get(name, -1) <= number]:
                    del one[name]
        return [self._in_order(result, feed) for result, feed in zip(results, feeds, strict=True)]

    def _open(self, read: Mapping[str, ir.TypeProtocol], made: list[str]) -> ort.InferenceSession:
        """A session that works out some tensors from others."""
        graph = ir.convenience.extract(self.model.graph, list(read), made)
        for value in graph.inputs:
            value.type, value.shape = read[value.name or ""], None
        for value in graph.outputs:
            value.shape = None
        piece = ir.Model(
            graph,
            ir_version=self.model.ir_version,
            functions=list(self.model.functions.values()),
        )
        return open_session(
            piece, self.runtime, optimise=self.optimise, arena=False, prepack=False
        )
