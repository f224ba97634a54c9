"""Calibration batches held in memory: which are read, which a trial takes, which are held out.

A convolutional network has its widest activations in front, where one sample gives thousands of
rows, and its widest weights in the back, where one gives a few dozen. So a walk starts with as many
batches as fit at the widest place, and takes more along later, where rows are short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.feeds import Feed
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.calibration.walk import KEPT_ITERATIONS
from onnxprune.model.bodies import places, subgraphs
from onnxprune.model.execution import node_reads
from onnxprune.model.observe import Observation

T = TypeVar("T")

WALK_BYTES = 1_200_000_000
"""What activations of two walks may take together."""

_INPUT_BYTES = 300_000_000  # of samples that only fit where activations are narrow
# what comes late is run from the start, so there must not be too much of it
_LATE_SHARE = 4
_GOLDEN = (5**0.5 - 1) / 2  # golden ratio: multiples of it spread evenly
_BATCH = 64  # samples
_LEAST_BATCHES = 4


def load_held_batches(
    samples: Samples,
    model: ir.Model,
    observed: Observation,
    views: int = 1,
    largest: int = WALK_BYTES,
    inputs: int = _INPUT_BYTES,
) -> list[Mapping[str, NDArray[Any]]]:
    """Read samples for walks, from all over the set when there are more than can be held.

    Args:
        samples: calibration samples.
        model: the original.
        observed: its traced shapes.
        views: how many samples augmentation makes of each.
        largest: bytes that activations of two walks may take together.
        inputs: bytes that samples may take which only fit where activations are narrow.

    Returns:
        Batches; at least one, and at least four where the samples can be cut that small: half of
        them fit, half judge. Any first few of them come from all over the set when not all fit
        everywhere; `BatchBudget` says how many fit where.
    """
    traced = samples.axes.rows(observed.feed) or 1
    limit = max(
        int(largest / views / max(2 * widest_cut(model.graph, observed.shapes) / traced, 1)), 1
    )
    count = samples.count if samples.count is not None else _BATCH * _LEAST_BATCHES
    size = max(1, min(_BATCH, min(count, limit) // _LEAST_BATCHES))
    sample_bytes = max(feed_bytes(observed.feed) // traced, 1)
    most = max(limit, min(inputs // views // sample_bytes, _LATE_SHARE * limit))
    # samples may be sorted by class, so those that fit in are taken from all over the set
    share = min(most / count, 1.0) if samples.count is not None else 1.0
    feeds: list[Mapping[str, NDArray[Any]]] = []
    have = 0
    for number, feed in enumerate(samples.batches(size)):
        if number and int(number * share) == int((number - 1) * share):
            continue
        rows = samples.axes.rows(feed) or 1
        if feeds and have + rows > most:
            break
        have += rows
        feeds.append(feed)
    if places(model.graph):
        feeds = _unlike_in_turn(feeds)
    if have <= limit:
        return feeds
    # those with the smallest fractional parts of a multiple of an irrational lie evenly spaced
    order = np.argsort(np.arange(len(feeds)) * _GOLDEN % 1.0, kind="stable")
    return [feeds[place] for place in order]


def _unlike_in_turn(batches: Sequence[T]) -> list[T]:
    """The batches in another order: what alternates, as branches that run, no longer does.

    Every second batch is held out. Neighbours change places as the sequence of Thue and Morse says,
    which has no period: of what came in turn, each part then has its share.
    """
    order = list(range(len(batches)))
    for pair in range(len(order) // 2):
        if pair.bit_count() % 2:
            order[2 * pair : 2 * pair + 2] = [2 * pair + 1, 2 * pair]
    return [batches[place] for place in order]


def first_batches(samples: Samples, count: int) -> list[Feed]:
    """The first few batches of samples, of `moments.BATCH` each where the source can be cut.

    Raises:
        CalibrationError: for unusable samples.
    """
    return list(islice(samples.batches(BATCH), count))


def fitted_part(batches: Sequence[T]) -> Sequence[T]:
    """The batches that are fitted: those at even positions."""
    return batches[::2]


def held_out_part(batches: Sequence[T]) -> Sequence[T]:
    """The batches that are compared, not fitted: those at odd positions; a single one is both."""
    return batches[1::2] or batches


def spread_batches(batches: Sequence[T], count: int) -> list[T]:
    """Some batches from all over the set; those that were held out before still are."""
    if len(batches) <= count:
        return list(batches)
    places = [number * len(batches) // count for number in range(count)]
    return [
        batches[min(place + (place + number) % 2, len(batches) - 1)]
        for number, place in enumerate(places)
    ]


def spread_pairs(batches: Sequence[T], count: int) -> list[T]:
    """Like `spread_batches`, with each fitted batch followed by the held-out one beside it."""
    if len(batches) <= count:
        return list(batches)
    pairs = len(batches) // 2
    chosen = [number * pairs // (count // 2) for number in range(count // 2)]
    return [batches[2 * pair + half] for pair in chosen for half in (0, 1)]


def feed_bytes(feed: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of the arrays of a feed."""
    return sum(array.nbytes for array in feed.values())


def widest_cut(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> int:
    """Most bytes that a run has to hold between two nodes, counting 4 bytes for each element."""
    return max((live for _, live in cuts(graph, shapes)), default=0)


def cuts(graph: ir.Graph, shapes: Mapping[str, Sequence[int]]) -> list[tuple[ir.Node, int]]:
    """Bytes that a run has to hold while it is at each node, in graph order."""
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for position, node in enumerate(nodes):
        for value in node_reads(node):
            last[value] = position
    sizes = {v: _bytes(v, shapes) for v in last if not v.is_initializer()}
    live = sum(size for value, size in sizes.items() if value.producer() is None)
    live_at = []
    for position, node in enumerate(nodes):
        live += sum(sizes[value] for value in node.outputs if value in sizes)
        live_at.append((node, live + _within(node, shapes)))
        for value in dict.fromkeys(node_reads(node)):
            if last[value] == position and value in sizes:
                live -= sizes[value]
    return live_at


def _within(node: ir.Node, shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes that a walk has to hold in the bodies of a node."""
    widest = max((widest_cut(body, shapes) for body in subgraphs(node)), default=0)
    return widest * (KEPT_ITERATIONS if node.op_type != "If" else 1)


def _bytes(value: ir.Value, shapes: Mapping[str, Sequence[int]]) -> int:
    size = 4
    for extent in shapes.get(value.name or "", ()):
        size *= extent
    return size


_ROWS_PER_UNKNOWN = 10  # of a regression; more change the solution by less than noise
_LEAST_GROWTH = 1.5  # of the batches held, below which running the new ones is not worth it


class BatchBudget:
    """Decides how many of the batches walks hold together.

    Args:
        graph: the original's main graph.
        observed: its traced shapes, and the feed they belong to.
        feeds: all batches.
        walks: how many walks hold them at a time.
        largest: bytes that activations of all walks may take together.
    """

    def __init__(
        self,
        graph: ir.Graph,
        observed: Observation,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        walks: int,
        largest: int = WALK_BYTES,
    ) -> None:
        self._largest = largest
        traced = max(feed_bytes(observed.feed), 1)
        self._scales = [walks * feed_bytes(feed) / traced for feed in feeds]
        self._widest: dict[str, int] = {}
        most = 0
        for node, live in reversed(cuts(graph, observed.shapes)):
            most = max(most, live)
            self._widest |= {value.name or "": most for value in node.outputs}
        self._most = most

    @property
    def at_start(self) -> int:
        """Number of batches that fit everywhere, at least one."""
        return self._fitting(self._most)

    def at(self, node: ir.Node, held: int, rows: int, unknowns: int, wanted: int) -> int:
        """Number of batches to hold from a node on.

        Args:
            node: a node that is about to be measured.
            held: number of batches that are held.
            rows: rows they give there.
            unknowns: of the regression.
            wanted: most rows that are of use.
        """
        wanted = min(wanted, _ROWS_PER_UNKNOWN * unknowns)
        needed = -(-wanted * held // max(rows, 1))
        name = node.outputs[0].name or ""
        count = min(needed, self._fitting(self._widest.get(name, self._most)))
        # each time the whole way up to here is run again
        return count if count >= _LEAST_GROWTH * held else held

    def _fitting(self, widest: int) -> int:
        total = 0.0
        for number, scale in enumerate(self._scales):
            total += scale * widest
            if total > self._largest and number:
                return number
        return len(self._scales)


def drawn_rows(counts: Sequence[int], most: int, seed: Sequence[int]) -> list[NDArray[np.int64]]:
    """Draw the same share of the rows of every batch.

    Args:
        counts: rows of each batch, at least one.
        most: rows to draw from all batches together; every batch gives one at least.
        seed: of what is drawn; batches differ by their number.

    Returns:
        For each batch the rows drawn, in ascending order.
    """
    share = min(1.0, most / max(sum(counts), 1))
    drawn = []
    for batch, count in enumerate(counts):
        rng = np.random.default_rng([*seed, batch])
        size = max(int(count * share), 1)
        drawn.append(np.sort(rng.choice(count, size, replace=False)))
    return drawn


def rows_by_weight(
    weights: Sequence[NDArray[np.float32]], most: int, seed: Sequence[int]
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Draw rows, more of those that count for more.

    A row is drawn with a probability that goes with its weight; divided by that probability it
    counts on average as much as in the whole.

    Args:
        weights: how much each row counts, for each batch float32 [rows], above 0.
        most: rows to draw from all batches together, on average; every batch gives one at least.
        seed: of what is drawn; batches differ by their number.

    Returns:
        For each batch the rows drawn, in ascending order, and how much each then counts.
    """
    factor = _inclusion_factor(np.concatenate(list(weights)), most)
    drawn = []
    for batch, each in enumerate(weights):
        rng = np.random.default_rng([*seed, batch])
        chance = np.minimum(each * factor, 1.0)
        ids = np.flatnonzero(rng.random(len(each)) < chance)
        ids = ids if len(ids) else np.array([int(each.argmax())])
        drawn.append((ids, (each[ids] / chance[ids]).astype(np.float32)))
    return drawn


def _inclusion_factor(weights: NDArray[np.float32], most: int) -> float:
    """What to multiply weights by so that, cut off at 1, they add up to a number of rows."""
    ordered = np.sort(weights.astype(np.float64))[::-1]
    if most >= len(ordered):
        return float("inf")
    # with the k greatest cut off, the others add up to most - k
    left = np.cumsum(ordered[::-1])[::-1]
    factors = (most - np.arange(len(ordered))) / left
    return float(factors[np.argmax(factors * ordered <= 1)])
