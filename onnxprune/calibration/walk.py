"""Walking through a model on all calibration batches at once, stopping at chosen nodes.

The graph is run piece by piece, every piece on all batches, and only what later nodes read is
kept: a walk costs one forward pass, and memory is that of the widest place of the graph, whatever
its depth. Nodes ahead of the walk may be changed while it stops.

At a node with bodies a walk can go on inside: the body is a graph of its own, and what it would
read in each of its runs takes the place of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.bodies import BodyRuns, in_order, note_types, outside_values
from onnxprune.model.bodies import Place, places
from onnxprune.model.execution import KnownValues, node_reads, open_piece, run
from onnxprune.model.runtime import Runtime

KEPT_ITERATIONS = 16
"""Iterations of a Loop or Scan in one run of it that a walk goes through, spread over all."""


@dataclass(frozen=True)
class BodyRun:
    """One run of a body.

    Attributes:
        outer: number of the run of the graph around it.
        formals: its formal inputs by name.
    """

    outer: int
    formals: Mapping[str, Any]


class Walk:
    """A graph that is run up to one node after another.

    Args:
        model: nodes that have not run yet may change during the walk.
        feeds: all batches, at least one; in a body what it reads in each run, if there is any.
        runtime: how to run it.
        graph: the graph to walk through, a body of the model; None for the main graph.

    Attributes:
        graph: the graph it walks through.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        graph: ir.Graph | None = None,
    ) -> None:
        self.graph = model.graph if graph is None else graph
        self._model = model
        self._runtime = runtime
        # nodes, not ids: the id of a deleted node may be used again
        self._done: set[ir.Node] = set()
        constants = {
            value.name: value.const_value.numpy()
            for value in self._returned()
            if value.name and value.is_initializer() and value.const_value is not None
        }
        self._constants: dict[str, NDArray[Any]] = constants
        self._values: list[dict[str, NDArray[Any]]] = [constants | dict(feed) for feed in feeds]
        self._types: dict[str, ir.TypeProtocol | None] = {}
        if graph is not None and feeds:
            note_types(self._types, feeds[0])

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return any(name in values for values in self._values[:1])

    def __getitem__(self, name: str) -> list[NDArray[Any]]:
        """Values of a tensor, batch by batch, as long as something ahead reads it or it is kept."""
        return [values[name] for values in self._values]

    def values(self, names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
        """Values of some tensors by name, batch by batch."""
        return [{name: values[name] for name in names} for values in self._values]

    def preview(self, upto: ir.Node, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run what a node needs, and the node, on the first batch only and without moving."""
        return self._run(self._needed(upto), names, self._values[:1])[0]

    def advance(
        self, upto: ir.Node | None, keep: Iterable[str] = (), *, past: bool = False
    ) -> None:
        """Run all nodes before one, on all batches.

        Args:
            upto: the node to stop at; None for the end of the graph.
            keep: names to keep although nothing ahead reads them.
            past: run the node itself too, and of those before it only what it needs: values that
                other nodes before it read stay until these are asked for.
        """
        nodes = self._needed(upto) if past and upto is not None else self._before(upto)
        self._done.update(nodes)
        wanted = {value.name or "" for value in self._returned()} | set(keep)
        for node in self.graph:
            if node not in self._done:
                wanted |= {value.name or "" for value in node_reads(node)}
        made = [value.name for node in nodes for value in node.outputs if value.name]
        fetched = [name for name in made if name in wanted]
        if fetched:
            results = self._run(nodes, fetched, self._values)
            for values, new in zip(self._values, results, strict=True):
                values |= new
        for values in self._values:
            for name in values.keys() - wanted:
                del values[name]

    def admit(self, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Add batches: they are run through all nodes that have run for the others.

        Args:
            feeds: inputs of the model.
        """
        if not feeds:
            return
        nodes = [node for node in self.graph if node in self._done]
        made = {value.name for node in nodes for value in node.outputs}
        fetched = [name for name in self._values[0] if name in made]
        batches = [self._constants | dict(feed) for feed in feeds]
        results = self._run(nodes, fetched, batches) if fetched else [{} for _ in batches]
        held = self._values[0].keys() - made
        for values, new in zip(batches, results, strict=True):
            self._values.append({name: values[name] for name in held} | new)

    def inside(
        self, place: Place, like: Sequence[BodyRun] | None = None
    ) -> tuple[Walk, list[BodyRun]]:
        """Go into a body of a node that the walk has come to.

        Args:
            place: the body.
            like: runs of the same body in another walk over the same batches: there are as many
                here, with the same formal inputs; None for those there are.

        Returns:
            a walk through the body, and its runs.
        """
        if like is None:
            like = self._runs_of(place)
        names = outside_values(place.graph)
        feeds = []
        for body_run in like:
            around = self._values[body_run.outer]
            feeds.append({n: around[n] for n in names if n in around} | dict(body_run.formals))
        return Walk(self._model, feeds, self._runtime, place.graph), list(like)

    def _runs_of(self, place: Place) -> list[BodyRun]:
        """Runs of a body, the first iterations of all batches first."""
        bodies = BodyRuns(self._model, place.node, self._runtime)
        found: list[tuple[int, BodyRun]] = []
        for outer, values in enumerate(self._values):
            mine = [formals for name, formals in bodies.of(values) if name == place.attribute]
            kept = min(len(mine), KEPT_ITERATIONS)
            chosen = np.linspace(0, len(mine) - 1, kept).round().astype(int).tolist()
            found += [(number, BodyRun(outer, mine[at])) for number, at in enumerate(chosen)]
        return [body_run for _, body_run in sorted(found, key=lambda each: each[0])]

    def _returned(self) -> list[ir.Value]:
        """Outputs of the model; what a body returns is not asked for."""
        return list(self.graph.outputs) if self.graph is self._model.graph else []

    def _before(self, upto: ir.Node | None) -> list[ir.Node]:
        """Nodes that have not run yet, up to one and without it."""
        nodes = []
        for node in self.graph:
            if node is upto:
                break
            if node not in self._done:
                nodes.append(node)
        return nodes

    def _needed(self, last: ir.Node) -> list[ir.Node]:
        """Nodes that have not run yet and that a node depends on, itself included."""
        needed: set[ir.Node] = set()
        waiting = [last]
        while waiting:
            node = waiting.pop()
            if node not in self._done and node not in needed:
                needed.add(node)
                makers = (value.producer() for value in node_reads(node))
                waiting += [m for m in makers if m is not None and m.graph is self.graph]
        return [node for node in self.graph if node in needed]

    def _run(
        self,
        nodes: Sequence[ir.Node],
        names: Sequence[str],
        batches: Sequence[Mapping[str, NDArray[Any]]],
    ) -> list[dict[str, NDArray[Any]]]:
        session, read = open_piece(
            self._model, nodes, names, KnownValues(self._types), self._runtime
        )
        results = []
        for values in batches:
            feed = {name: in_order(values[name]) for name in read}
            results.append(run(session, feed, names))
        return results


class DeepWalk:
    """A walk through a model that goes into the bodies of its nodes on the way.

    Args:
        model: the model; see `Walk`.
        feeds: all batches, at least one.
        runtime: how to run it.
        guide: a walk over the same batches that says which bodies run, and on what states.
        closed: ids of nodes whose bodies are left out.

    Attributes:
        outermost: the walk through the main graph.
        guide: see above.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        runtime: Runtime,
        guide: DeepWalk | None = None,
        closed: Collection[str] = (),
    ) -> None:
        self.outermost = Walk(model, feeds, runtime)
        self.guide = guide
        self._places = places(model.graph, closed)
        self._keys = {id(place.graph): key for key, place in self._places.items()}
        self._open: list[tuple[str, Walk, list[BodyRun]]] = [("", self.outermost, [])]

    def at(self, node: ir.Node) -> Walk:
        """The walk through the graph that a node is in; those through bodies left are closed."""
        return self._at(self._keys.get(id(node.graph), ""))

    @property
    def innermost(self) -> Walk:
        """The walk through the graph that was last gone into."""
        return self._open[-1][1]

    def leave(self) -> Walk:
        """Close all walks through bodies."""
        return self._at("")

    def _at(self, key: str) -> Walk:
        path = [key]
        while path[0]:
            path.insert(0, self._places[path[0]].around)
        while self._open[-1][0] not in path:
            self._open.pop()
        if self.guide is not None:
            self.guide._at(key)
        for inner in path[len(self._open) :]:
            place, walk = self._places[inner], self._open[-1][1]
            walk.advance(place.node)
            like = None if self.guide is None else self.guide._open[len(self._open)][2]
            self._open.append((inner, *walk.inside(place, like)))
        return self._open[-1][1]
