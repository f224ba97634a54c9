"""What is odd about calibration samples, in sentences with the next step.

Samples that are too few, all the same or constant say nothing about a model; neither do outputs
that are the same for all of them. Whether samples look like those a model was trained on can be
read off its BatchNormalization nodes: for each channel c of what such a node normalises, mean m and
variance v on the samples are compared with the running statistics mu and s of training, as the
divergence of two normal distributions:

    d_c = (v_c / s_c + (m_c - mu_c)^2 / s_c - 1 - log(v_c / s_c)) / 2

The median over the channels is below 0.1 for samples like those of training, even for two of them,
and from 0.3 to many thousands for images of another range. Without such nodes (exporters fold them
into convolutions) only the range of the inputs is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.feeds import Feed
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.streams import Samples
from onnxprune.model.execution import Execution, open_session, run
from onnxprune.model.observe import constant_array
from onnxprune.model.outputs import LINEAR, SOFTMAX, ScoreLayout, output_producer
from onnxprune.model.runtime import Runtime

NOT_COMPARED = (
    "without samples the result was not compared with the original, and nothing was re-fitted: "
    "nobody knows what it still answers; give a few hundred samples with --calibration"
)
"""What is to be said of a result without calibration."""

_ROWS = 8  # samples in a batch
_BATCHES = 16  # most that are looked at
_AT_ONCE = 2  # batches that are run before it is seen whether outputs vary
_FEWEST = 4  # samples, of which one is held out
_SAME = 1e-6  # difference of two outputs over their size that is rounding
_NORMALISATIONS = 3  # the first ones of the model: behind them differences fade
_APART = 0.25  # divergence of two normal distributions, see above
_PIXELS = (128, 255)  # the highest value of images that were not normalised
_IMAGE_RANK = 4
_CHANNELS = (1, 3)  # grey, RGB
_PASSED_ON = ("Cast", "Identity", "Transpose", "Reshape", "Pad", "Squeeze", "Unsqueeze")
_CONTRACTIONS = ("Conv", "Gemm", "MatMul")


def sample_warnings(model: ir.Model, samples: Samples, runtime: Runtime) -> tuple[str, ...]:
    """Say what is odd about samples, and about what a model makes of them.

    At most 128 samples from all over the set are looked at.

    Args:
        model: the original.
        samples: its calibration samples.
        runtime: how it is run.

    Returns:
        sentences, each with the next step in it; none where nothing is odd.

    Raises:
        CalibrationError: for unusable samples.
        RuntimeFailure: when the model does not run on them.
    """
    feeds, count = _spread(samples)
    if count < _FEWEST:
        few = "one sample" if count == 1 else f"{count} samples"
        found = [f"calibrated on {few}: too few to tell what matters; give a few hundred"]
    else:
        found = _about_inputs(feeds, samples.axes)
    if not found:
        found += _about_outputs(model, feeds, samples.axes, runtime)
    return (*found, *_about_ranges(model, feeds, runtime))


def _spread(samples: Samples) -> tuple[list[Feed], int]:
    """Some batches from all over the set, and how many samples there are."""
    kept: list[Feed] = []
    step, count = 1, 0
    for place, feed in enumerate(samples.batches(_ROWS)):
        rows = samples.axes.rows(feed)
        count += 1 if rows is None else rows
        if place % step == 0:
            kept.append(feed)
        if len(kept) > _BATCHES:
            kept, step = kept[::2], 2 * step
    return kept, count


def _about_inputs(feeds: Sequence[Feed], axes: SampleAxes) -> list[str]:
    """Inputs that are the same in every sample, or everywhere."""
    rows = {
        name: [row for feed in feeds for row in _rows(feed[name], axes.axes.get(name))]
        for name in feeds[0]
        if not axes.axes or name in axes.axes
    }
    rows = {name: each for name, each in rows.items() if each[0].size > 1}
    if rows and all(_all_equal(each) for each in rows.values()):
        return [
            "all samples are the same: whatever they do not switch on counts as unnecessary; give "
            "different ones, as the model gets them in use"
        ]
    return [
        f"the input {name!r} is {each[0].reshape(-1)[0]:g} everywhere, in every sample: what only "
        "other values switch on counts as unnecessary; give samples as the model gets them in use"
        for name, each in rows.items()
        if each[0].dtype.kind == "f" and all(np.ptp(row) == 0 for row in each) and _all_equal(each)
    ]


def _rows(array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    return array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)


def _all_equal(arrays: Sequence[NDArray[Any]]) -> bool:
    return all(np.array_equal(array, arrays[0]) for array in arrays)


def _about_outputs(
    model: ir.Model, feeds: Sequence[Feed], axes: SampleAxes, runtime: Runtime
) -> list[str]:
    """Outputs of the original that do not vary over the samples."""
    opset = model.opset_imports.get("", 1)
    producers = {value.name or "": output_producer(value) for value in model.graph.outputs}
    execution = Execution(model, runtime)
    firsts: dict[str, NDArray[Any]] = {}
    varying: dict[str, bool] = {}
    answering: dict[str, bool] = {}
    # the ends first: samples may be sorted by class
    ordered = [feeds[0], *reversed(feeds[1:])]
    for start in range(0, len(ordered), _AT_ONCE):
        part = ordered[start : start + _AT_ONCE]
        for feed, outputs in zip(part, execution.run_all(part), strict=True):
            for name, row in _output_rows(outputs, axes.rows(feed)):
                first = firsts.setdefault(name, row)
                varying[name] = varying.get(name, False) or _differ(first, row)
                if _answers(producers.get(name), row) and row.shape == first.shape:
                    layout = ScoreLayout.of(producers.get(name), opset)
                    best = [layout.rows(each[np.newaxis]).argmax(1) for each in (first, row)]
                    answering[name] = answering.get(name, False) or not np.array_equal(*best)
        if all(varying.values()) and all(answering.values()):
            return []
    return [
        f"the original's output {name!r} is the same for all samples, so keeping it proves "
        "nothing; give samples that differ in what the model is to tell apart"
        for name, varies in varying.items()
        if not varies
    ] + [
        f"the largest scores in the original's {name!r} are at the same places for all samples, so "
        "keeping its answers proves little; give samples of everything the model is to tell apart, "
        "prepared as in training"
        for name, answers_differ in answering.items()
        if not answers_differ and varying[name]
    ]


def _output_rows(
    outputs: Mapping[str, Any], count: int | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Outputs of each sample; the whole output where its first axis does not count samples."""
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            for row in _rows(value, 0 if value.ndim and len(value) == count else None):
                yield name, row


def _answers(producer: ir.Node | None, row: NDArray[Any]) -> bool:
    """Whether an output of one sample holds class scores, not features or quantities."""
    if producer is None or not row.ndim or row.shape[-1] < 2:
        return False
    return producer.op_type in SOFTMAX or (producer.op_type in LINEAR and row.ndim == 1)


def _differ(first: NDArray[Any], other: NDArray[Any]) -> bool:
    if first.shape != other.shape:
        return True
    if first.dtype.kind != "f":
        return not np.array_equal(first, other)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(first.astype(np.float64) - other)
        size = np.abs(first[np.isfinite(first)]).max(initial=0)
    return bool((apart[np.isfinite(apart)] > _SAME * size).any())


def _about_ranges(model: ir.Model, feeds: Sequence[Feed], runtime: Runtime) -> list[str]:
    """Whether the samples look like those the model was trained on."""
    normalised = _normalisations(model)
    if not normalised:
        return _raw_pixels(model, feeds)
    apart = _apart_from_training(model, normalised, feeds, runtime)
    if apart is None or apart[0] <= _APART:
        return []
    _, spread = apart
    where = "where its first layers are normalised, values "
    if 1 / 2 < spread < 2:
        where += "lie elsewhere than in training"
    else:
        factor = f"{spread:.2g}" if spread < 1 else f"{min(spread, 1e6):,.0f}"
        where += f"spread {factor} times as far as in training"
    return [
        f"the samples do not look like what the model was trained on: {where}; check range, mean, "
        "standard deviation and layout of the inputs"
    ]


def _normalisations(model: ir.Model) -> list[ir.Node]:
    """The first BatchNormalization nodes with statistics of a training."""
    found = []
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain or len(node.inputs) < 5:
            continue
        mean, variance = constant_array(node.inputs[3]), constant_array(node.inputs[4])
        if mean is None or variance is None or node.attributes.get_int("training_mode", False):
            continue
        if mean.any() or (variance != 1).any():  # else it was never trained
            found.append(node)
    return found[:_NORMALISATIONS]


def _apart_from_training(
    model: ir.Model, nodes: Sequence[ir.Node], feeds: Sequence[Feed], runtime: Runtime
) -> tuple[float, float] | None:
    """How far the samples are from the statistics of training.

    Returns:
        divergence, as above, and ratio of standard deviations; the medians of several nodes.
    """
    probe = model.clone()
    names = [node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None]
    values = {value.name: value for node in probe.graph for value in node.outputs}
    computed = [name for name in dict.fromkeys(names) if name in values]
    # without the outputs of the model, what is behind does not run
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(values[name] for name in computed)
    session = open_session(probe, runtime, arena=False) if computed else None
    sums: dict[str, _Sums] = {}
    for feed in feeds:
        found = run(session, feed) if session is not None else {}
        for name, value in {**feed, **found}.items():
            if name in names:
                sums.setdefault(name, _Sums()).add(value)
    measured = [
        apart
        for node, name in zip(nodes, names, strict=True)
        if (apart := sums[name].apart_from(node)) is not None
    ]
    if not measured:
        return None
    divergence, spread = np.median(np.array(measured), axis=0).tolist()
    return divergence, spread


class _Sums:
    """Mean and variance of every channel, over any number of arrays [rows, channels, ...]."""

    def __init__(self) -> None:
        self._count = 0
        self._total: Any = 0.0
        self._squares: Any = 0.0

    def add(self, array: NDArray[Any]) -> None:
        channels = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
        self._count += channels.shape[1]
        self._total = self._total + channels.sum(axis=1)
        self._squares = self._squares + (channels**2).sum(axis=1)

    def apart_from(self, node: ir.Node) -> tuple[float, float] | None:
        """Medians of divergence and of the ratio of standard deviations."""
        means, variances = constant_array(node.inputs[3]), constant_array(node.inputs[4])
        assert means is not None
        assert variances is not None
        usable = variances > 0
        if not usable.any():
            return None
        mean = self._total / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0)
        expected = variances.astype(np.float64)[usable]
        ratio = np.maximum(variance[usable] / expected, 1e-12)
        shift = (mean - means)[usable] ** 2 / expected
        divergence = (ratio + shift - 1 - np.log(ratio)) / 2
        if not np.isfinite(divergence).all():
            return math.inf, math.inf
        return float(np.median(divergence)), float(np.median(np.sqrt(ratio)))


def _raw_pixels(model: ir.Model, feeds: Sequence[Feed]) -> list[str]:
    """Images of 0 to 255 that go straight into a convolution or matrix product."""
    found = []
    for value in model.graph.inputs:
        arrays = [feed[value.name or ""] for feed in feeds if value.name in feed]
        if not arrays or not _are_images(arrays) or not _goes_into(value, _CONTRACTIONS):
            continue
        low, high = min(a.min() for a in arrays), max(a.max() for a in arrays)
        if low >= 0 and _PIXELS[0] <= high <= _PIXELS[1]:
            found.append(
                f"the input {value.name!r} holds pixels from {low:g} to {high:g}; if the model was "
                "trained on normalised images, prepare these the same way (for a folder of images: "
                "--images mean=...,std=...)"
            )
    return found


def _are_images(arrays: Sequence[NDArray[Any]]) -> bool:
    first = arrays[0]
    return (
        first.ndim == _IMAGE_RANK
        and first.dtype.kind == "f"
        and (first.shape[1] in _CHANNELS or first.shape[3] in _CHANNELS)
    )


def _goes_into(value: ir.Value, ops: Sequence[str]) -> bool:
    """Whether nothing else reads a value, behind what only moves it."""
    readers = [node for node, _ in value.uses()]
    return bool(readers) and all(
        node.op_type in ops or (node.op_type in _PASSED_ON and _goes_into(node.outputs[0], ops))
        for node in readers
    )
