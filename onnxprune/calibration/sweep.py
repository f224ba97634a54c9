"""Calibration batches that are held in memory while two models are walked through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxprune.calibration.feeds import batch_rows
from onnxprune.model.pieces import node_reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.observe import Observation

__all__ = ["sweep_batches", "widest_cut"]

_BYTES = 1_200_000_000
_BATCH = 64
_LEAST_BATCHES = 4


def sweep_batches(
    samples: Samples,
    model: ir.Model,
    observed: Observation,
    views: int = 1,
    largest: int = _BYTES,
) -> list[Mapping[str, NDArray[Any]]]:
    """Read as many samples as two walks can hold, from all over the set when it has more.

    Args:
        samples: calibration samples.
        model: the original.
        observed: its traced shapes.
        views: how many samples each will be made into.
        largest: bytes that activations of both walks may take together.

    Returns:
        Batches; at least one, and at least four where the samples can be cut that small: half of
        them fit, half judge.
    """
    traced = batch_rows(observed.feed, samples.specs) or 1
    limit = max(
        int(largest / views / max(2 * widest_cut(model.graph, observed.shapes) / traced, 1)), 1
    )
    count = samples.count if samples.count is not None else _BATCH * _LEAST_BATCHES
    size = max(1, min(_BATCH, min(count, limit) // _LEAST_BATCHES))
    # samples may be sorted by class, so those that fit in are taken from all over the set
    share = min(limit / count, 1.0) if samples.count is not None else 1.0
    feeds: list[Mapping[str, NDArray[Any]]] = []
    have = 0
    for number, feed in enumerate(samples.batches(size)):
        if number and int(number * share) == int((number - 1) * share):
            continue
        have += batch_rows(feed, samples.specs) or 1
        if feeds and have > limit:
            break
        feeds.append(feed)
    return feeds


def widest_cut(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """Most bytes that a run has to hold between two nodes, counting 4 bytes for each element."""
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for position, node in enumerate(nodes):
        for value in node_reads(node):
            last[value] = position
    sizes = {v: _bytes(v, shapes) for v in last if not v.is_initializer()}
    live = sum(size for value, size in sizes.items() if value.producer() is None)
    widest = live
    for position, node in enumerate(nodes):
        for value in node.outputs:
            if value in sizes:
                live += sizes[value]
        widest = max(widest, live)
        for value in dict.fromkeys(node_reads(node)):
            if last[value] == position and value in sizes:
                live -= sizes[value]
    return widest


def _bytes(value: ir.Value, shapes: Mapping[str, Sequence[int]]) -> int:
    size = 4
    for extent in shapes.get(value.name or "", ()):
        size *= extent
    return size
