"""Statistics of activations over calibration samples, reduced inside the graph.

Every tapped tensor is reduced by ONNX nodes to one number per sample and labelled position, so
memory does not grow with the number of samples; sums over samples are kept in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.bodies import BodyObserver, fetch
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.calibration.streams import Samples
from onnxprune.errors import CalibrationError
from onnxprune.model.runtime import Runtime
from onnxprune.progress import Progress, silent

BATCH = 32
"""Samples per run where the model leaves it open."""

_STEADY = 1e-6  # relative spread below which values count as the same, about float32 rounding
_REDUCTIONS = {
    "mean": "ReduceMean",
    "mean_square": "ReduceMean",
    "mean_magnitude": "ReduceMean",
    "minimum": "ReduceMin",
    "maximum": "ReduceMax",
}


@dataclass(frozen=True)
class Tap:
    """A tensor to watch.

    Attributes:
        tensor: its name.
        axes: the axes whose positions are kept apart, in nesting order.
        rank: its number of axes.
        extent: of axis 0, where that is among the axes; as many entries the moments have along it,
            whatever the batch. 0 for that of the batch.
        period: entries of axis 0 after which the same come again, for another sample.
        body: key of the body in whose runs it is watched; empty for the main graph.
    """

    tensor: str
    axes: tuple[int, ...]
    rank: int
    extent: int = field(default=0, compare=False)
    period: int = field(default=0, compare=False)
    body: str = ""


@dataclass(frozen=True)
class Moments:
    """Statistics of a tap; every array has one entry per position of the tap's axes, float64.

    Attributes:
        count: number of samples seen.
        mean: average value; every sample counts the same.
        mean_square: average of the squared value.
        mean_magnitude: average of the absolute value.
        steady: bool, True where the values were the same in every sample, be it one value
            everywhere or another at each place.
        even: bool, True where it was one value everywhere.
    """

    count: int
    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    mean_magnitude: NDArray[np.float64]
    steady: NDArray[np.bool_]
    even: NDArray[np.bool_]

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance over samples and positions."""
        return np.maximum(self.mean_square - self.mean**2, 0.0)


def collect(
    model: ir.Model,
    taps: Iterable[Tap],
    samples: Samples,
    runtime: Runtime,
    progress: Progress[Any] = silent,
) -> dict[Tap, Moments]:
    """Run the model over the samples and return the moments of every tap that was run.

    A tap in a body counts the runs of that body; one whose body never ran has no moments.

    Args:
        model: unchanged.
        taps: what to watch; repeated taps are watched once.
        samples: calibration samples.
        runtime: how to run the model.
        progress: progress callback, called for every batch.

    Raises:
        CalibrationError: when the samples are unusable, or an activation is NaN or infinite.
    """
    watched = list(dict.fromkeys(taps))
    if not watched:
        return {}
    by_body: dict[str, list[Tap]] = defaultdict(list)
    for tap in watched:
        by_body[tap.body].append(tap)
    added = {key: _Reductions(taps) for key, taps in by_body.items()}
    observer = BodyObserver(model, added, runtime)
    sums = {tap: _Sums() for tap in watched}
    total = None if samples.count is None else -(-samples.count // BATCH)
    for feed in progress(samples.batches(BATCH), "calibrating", total):
        rows = samples.axes.rows(feed) or 1
        for key, results in observer.run(feed):
            for tap in by_body[key]:
                names = added[key].names[tap]
                sums[tap].add({k: results[name] for k, name in names.items()}, tap, rows)
    ran = {tap: running for tap, running in sums.items() if running.count}
    result = {tap: running.moments() for tap, running in ran.items()}
    uneven = {tap: running.steady_if_same() for tap, running in ran.items() if 0 not in tap.axes}
    confirmed = _same_in_every_sample(model, uneven, samples, runtime)
    for tap, steady in confirmed.items():
        result[tap] = replace(result[tap], steady=result[tap].steady | steady)
    return result


class _Sums:
    """Running sums of one tap."""

    def __init__(self) -> None:
        self.count = 0
        self.total: dict[str, Any] = defaultdict(float)
        self.lowest: dict[str, Any] = {}
        self.highest: dict[str, Any] = {}

    def add(self, batch: dict[str, NDArray[Any]], tap: Tap, samples: int) -> None:
        """Take in a batch: arrays [rows, *positions], or [*positions] when axis 0 is kept.

        Rows need not be samples (a recurrent network may have its time on axis 0), so it is the
        number of samples that a batch counts with.
        """
        if not all(value.size for value in batch.values()):
            return
        for key, value in batch.items():
            rows = value.astype(np.float64)
            rows = _by_period(rows, tap) if 0 in tap.axes else rows
            if not np.isfinite(rows).all():
                raise CalibrationError(
                    f"{tap.tensor} is NaN or infinite on the calibration samples; check their range"
                )
            self.total[key] = self.total[key] + samples * rows.mean(axis=0)
            low, high = rows.min(axis=0), rows.max(axis=0)
            self.lowest[key] = np.minimum(self.lowest.get(key, low), low)
            self.highest[key] = np.maximum(self.highest.get(key, high), high)
        self.count += samples

    def moments(self) -> Moments:
        """Finish: averages, and which positions held one value everywhere."""
        spread = self.highest["maximum"] - self.lowest["minimum"]
        even = (spread <= _STEADY * self._size()) & (self.count > 1)
        return Moments(
            count=self.count,
            mean=self.total["mean"] / self.count,
            mean_square=self.total["mean_square"] / self.count,
            mean_magnitude=self.total["mean_magnitude"] / self.count,
            steady=even,
            even=even,
        )

    def steady_if_same(self) -> NDArray[np.bool_]:
        """Positions that do not hold one value, but whose summary is that of every sample."""
        keys = ("mean", "minimum", "maximum")
        spread = np.max([self.highest[key] - self.lowest[key] for key in keys], axis=0)
        same: NDArray[np.bool_] = (spread <= _STEADY * self._size()) & (self.count > 1)
        return same & ~self.moments().steady

    def _size(self) -> NDArray[np.float64]:
        size: NDArray[np.float64] = np.maximum(
            np.abs(self.lowest["minimum"]), np.abs(self.highest["maximum"])
        )
        return size


def _by_period(value: NDArray[np.float64], tap: Tap) -> NDArray[np.float64]:
    """Entries along axis 0, [rows, *positions]; a row for each period if samples share it."""
    place = tap.axes.index(0)
    if value.shape[place] == tap.extent:
        return value[np.newaxis]
    lines = np.moveaxis(value, place, 0)
    period = math.gcd(len(lines), tap.period)
    rows = lines.reshape(-1, period, *lines.shape[1:])
    rows = rows[:, np.arange(tap.extent or len(lines)) % period]
    return np.moveaxis(rows, 1, place + 1)


def _same_in_every_sample(
    model: ir.Model, candidates: Mapping[Tap, NDArray[np.bool_]], samples: Samples, runtime: Runtime
) -> dict[Tap, NDArray[np.bool_]]:
    """Compare whole activations sample by sample; their summaries agree already.

    A bright spot that moves has the same mean, minimum and maximum everywhere, hence this second
    look, at the few tensors that need it.
    """
    left = {tap: mask.copy() for tap, mask in candidates.items() if mask.any()}
    if not left:
        return {}
    by_body: dict[str, list[Tap]] = defaultdict(list)
    for tap in left:
        by_body[tap.body].append(tap)
    wanted = {key: fetch({tap.tensor for tap in taps}) for key, taps in by_body.items()}
    observer = BodyObserver(model, wanted, runtime)
    reference: dict[tuple[str, str], NDArray[np.float64]] = {}
    for feed in samples.batches(1):
        for key, values in observer.run(feed):
            for tap in by_body[key]:
                value, mask = values[tap.tensor].astype(np.float64), left[tap]
                first = reference.setdefault((key, tap.tensor), value[:1])
                if value.shape[1:] != first.shape[1:]:
                    mask[...] = False
                    continue
                others = tuple(axis for axis in range(tap.rank) if axis not in tap.axes)
                apart = np.abs(value - first).max(axis=others)
                same = apart <= _STEADY * np.abs(first).max(axis=others)
                mask &= same.transpose(np.argsort(np.argsort(tap.axes)))
        if not any(mask.any() for mask in left.values()):
            break
    return left


class _Reductions:
    """Adds the reductions of some taps to a graph.

    Args:
        taps: what to watch there.

    Attributes:
        names: what the reductions of each tap are called.
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.names: dict[Tap, dict[str, str]] = {}
        self._taps = taps

    def __call__(self, probe: ir.Model) -> list[str]:
        """Append nodes to a model; returns the names of what they make."""
        self.names = {
            tap: _add_reductions(probe, tap, number) for number, tap in enumerate(self._taps)
        }
        return [name for per_tap in self.names.values() for name in per_tap.values()]


def _add_reductions(probe: ir.Model, tap: Tap, number: int) -> dict[str, str]:
    """Append nodes that reduce a tensor per sample and position; returns their output names."""
    graph = probe.graph
    value = _value(graph, tap.tensor)
    nodes = [_node("Cast", [value], to=int(ir.DataType.FLOAT))]
    single = nodes[0].outputs[0]
    nodes += [_node("Mul", [single, single]), _node("Abs", [single])]
    sources = {"mean_square": nodes[1].outputs[0], "mean_magnitude": nodes[2].outputs[0]}
    reduced = [axis for axis in range(1, tap.rank) if axis not in tap.axes]
    names = {}
    for key, op in _REDUCTIONS.items():
        source = sources.get(key, single)
        last = _reduction(probe, op, source, reduced, nodes)
        order = sorted(tap.axes)
        if tuple(order) != tap.axes:
            shift = 0 if 0 in tap.axes else 1
            moved = [order.index(axis) + shift for axis in tap.axes]
            nodes.append(_node("Transpose", [last.outputs[0]], perm=[*range(shift), *moved]))
            last = nodes[-1]
        names[key] = f"onnxprune/{number}/{key}"
        last.outputs[0].name = names[key]
        last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(last.outputs[0])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    return names


def _reduction(
    probe: ir.Model, op: str, source: ir.Value, axes: list[int], nodes: list[ir.Node]
) -> ir.Node:
    """One reduction; axes are an attribute before opset 18 and an input from then on."""
    if not axes:
        nodes.append(_node("Identity", [source]))
    elif probe.opset_imports.get("", 1) < 18:
        nodes.append(_node(op, [source], axes=axes, keepdims=0))
    else:
        nodes.append(_node("Constant", [], value=ir.tensor(np.array(axes, np.int64))))
        nodes.append(_node(op, [source, nodes[-1].outputs[0]], keepdims=0))
    return nodes[-1]


def _node(op: str, inputs: list[ir.Value], **attributes: Any) -> ir.Node:
    converted = ir.convenience.convert_attributes(attributes)
    return ir.Node("", op, inputs, converted, num_outputs=1)


def _value(graph: ir.Graph, name: str) -> ir.Value:
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return next(value for value in values if value.name == name)


@dataclass(frozen=True)
class Calibration:
    """What the samples tell of one model.

    Attributes:
        samples: all of them.
        moments: statistics of the activations through which groups are read.
        feeds: batches that layers are fitted on, every second of them held out to judge fits.
        sensitivity: how much the original's answers react to its layers on these batches.
    """

    samples: Samples
    moments: Mapping[Tap, Moments]
    feeds: Sequence[Mapping[str, NDArray[Any]]] = ()
    sensitivity: OutputSensitivity = field(default_factory=OutputSensitivity)

    def some(self, batches: Sequence[int]) -> Calibration:
        """The same with some of the batches, by number."""
        feeds = [self.feeds[number] for number in batches]
        return replace(self, feeds=feeds, sensitivity=self.sensitivity.some(batches))
