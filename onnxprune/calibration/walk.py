"""Walking through a model on all calibration batches at once, stopping at chosen nodes.

The graph is run piece by piece, every piece on all batches, and only what later nodes read is
kept: a walk costs one forward pass, and memory is that of the widest place of the graph, whatever
its depth. Nodes ahead of the walk may be changed while it stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import KnownValues, node_reads, open_piece, run
from onnxprune.model.runtime import Runtime


class Walk:
    """A model that is run up to one node after another.

    Args:
        model: nodes that have not run yet may change during the walk.
        feeds: all batches, at least one.
        runtime: how to run it.
    """

    def __init__(
        self, model: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]], runtime: Runtime
    ) -> None:
        self._model = model
        self._runtime = runtime
        # nodes, not ids: the id of a deleted node may be used again
        self._done: set[ir.Node] = set()
        constants = {
            value.name: value.const_value.numpy()
            for value in model.graph.outputs
            if value.name and value.is_initializer() and value.const_value is not None
        }
        self._constants: dict[str, NDArray[Any]] = constants
        self._values: list[dict[str, NDArray[Any]]] = [constants | dict(feed) for feed in feeds]
        self._types: dict[str, ir.TypeProtocol | None] = {}

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values[0]

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
        wanted = {value.name or "" for value in self._model.graph.outputs} | set(keep)
        for node in self._model.graph:
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
        nodes = [node for node in self._model.graph if node in self._done]
        made = {value.name for node in nodes for value in node.outputs}
        fetched = [name for name in self._values[0] if name in made]
        batches = [self._constants | dict(feed) for feed in feeds]
        results = self._run(nodes, fetched, batches) if fetched else [{} for _ in batches]
        held = self._values[0].keys() - made
        for values, new in zip(batches, results, strict=True):
            self._values.append({name: values[name] for name in held} | new)

    def _before(self, upto: ir.Node | None) -> list[ir.Node]:
        """Nodes that have not run yet, up to one and without it."""
        nodes = []
        for node in self._model.graph:
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
                waiting += [maker for maker in makers if maker is not None]
        return [node for node in self._model.graph if node in needed]

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
            feed = {name: _in_order(values[name]) for name in read}
            results.append(run(session, feed, names))
        return results


def _in_order(value: Any) -> Any:
    """An array in C order, of rank 0 too; a sequence as it is."""
    return np.asarray(value, order="C") if isinstance(value, np.ndarray) else value
