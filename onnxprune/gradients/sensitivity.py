"""Sensitivity of the divergence to the outputs of layers, from gradients.

To second order the divergence D of the answers (`verification/divergence.py`) grows with an error d
at the output of a layer by d' F d / 2, with F its Gauss-Newton matrix, the Fisher information of
the answers. Of F the diagonal is taken, place by place and channel by channel::

    s = E[g^2]        g = dL/dy, with random signs (`gradients/divergence.py`)

Source: Martens 2020 (natural gradient and Gauss-Newton), 9; Nagel et al. 2020 and Li et al. 2021
(BRECQ) for weighting layer errors by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.gradients.differentiated import Squared, differentiate_tensors
from onnxprune.gradients.divergence import DivergenceGradient
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import input_specs

_ACTIVATION_BYTES = 500_000_000
"""Memory for the activations of one backward pass."""


def measure_sensitivity(
    model: ir.Model,
    layers: Mapping[str, Sequence[int]],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    context: RunContext,
) -> OutputSensitivity:
    """Run a model forwards and backwards over batches.

    Args:
        model: the original; unchanged.
        layers: by name of a layer's output, the axes of its channels.
        feeds: batches; results are for these, in this order.
        context: runtime, seed of the signs that are drawn, progress callback.

    Returns:
        what is known; of layers that gradients do not get to, the reason. Nothing is raised where
        there are no gradients at all: then every layer has a reason. Layers that no answer depends
        on are in neither.
    """
    outputs = Execution(model, context.runtime, arena=False).run_all(feeds)
    rng = np.random.default_rng(context.seed)
    gradient = DivergenceGradient(model, outputs, rng)
    try:
        made = differentiate_tensors(
            model, gradient.tensors, layers, feeds[0], context.runtime, rng
        )
        if not made.rows:
            return OutputSensitivity(blocked=made.blocked)
        backwards = _Backwards(model, made, feeds[0], context)
        sums = _Sums()
        pairs = list(zip(feeds, outputs, strict=True))
        for feed, given in context.progress(pairs, "measuring sensitivity", len(pairs)):
            backwards.run(feed, gradient.of(given), sums)
    except (InputError, RuntimeFailure) as error:
        return OutputSensitivity(blocked=dict.fromkeys(layers, str(error)))
    return sums.finished(made.blocked)


class _Sums:
    """Squared gradients as they come in."""

    def __init__(self) -> None:
        self.rows: dict[str, list[NDArray[np.float32] | None]] = {}
        self.columns: dict[str, NDArray[np.float64]] = {}
        self.samples = 0

    def add(
        self, name: str, rows: NDArray[np.float32] | None, columns: NDArray[np.float64]
    ) -> None:
        self.rows.setdefault(name, []).append(rows)
        self.columns[name] = self.columns.get(name, 0.0) + columns

    def finished(self, blocked: Mapping[str, str]) -> OutputSensitivity:
        rows: dict[str, list[NDArray[np.float32]]] = {}
        columns, reasons = {}, dict(blocked)
        for name, parts in self.rows.items():
            known = [part for part in parts if part is not None]
            count = sum(part.size for part in known)
            total = sum(float(part.sum(dtype=np.float64)) for part in known)
            if len(known) < len(parts):
                reasons[name] = "its rows cannot be told apart by sample"
            elif not math.isfinite(total):
                reasons[name] = "its gradients are not finite"
            elif total > 0:
                mean = total / count
                rows[name] = [(part / mean).astype(np.float32) for part in known]
                columns[name] = self.columns[name] / max(self.samples, 1)
        return OutputSensitivity(rows, columns, reasons)


class _Backwards:
    """The backward graph, run on as many samples at a time as memory allows."""

    def __init__(
        self,
        model: ir.Model,
        made: Squared,
        sample: Mapping[str, NDArray[Any]],
        context: RunContext,
    ) -> None:
        self._made = made
        self._axes = SampleAxes.of(input_specs(model))
        self._run = Execution(made.model, context.runtime, arena=False)
        each = made.activation_bytes / (self._axes.rows(sample) or 1)
        self._most = max(1, int(_ACTIVATION_BYTES / max(each, 1)))

    def run(
        self, feed: Mapping[str, NDArray[Any]], seeds: Mapping[str, NDArray[Any]], sums: _Sums
    ) -> None:
        """Add what one batch gives."""
        count = self._axes.rows(feed) or 1
        apart = not self._axes.fixed and all(
            len(seed) == count for seed in seeds.values() if seed.ndim
        )
        places = [slice(start, start + self._most) for start in range(0, count, self._most)]
        if not apart or len(places) == 1:
            results = [self._run.run(self._made.feed(feed, seeds))]
        else:
            results = [
                self._run.run(self._made.feed(self._axes.cut(feed, part), _rows(seeds, part)))
                for part in places
            ]
        sums.samples += count
        for name, output in self._made.rows.items():
            parts = [result[output] for result in results]
            axis = self._made.batch_axes.get(name)
            columns = np.sum([result[self._made.columns[name]] for result in results], axis=0)
            if len(parts) == 1:
                sums.add(name, parts[0], columns.astype(np.float64))
            else:
                rows = None if axis is None else np.concatenate(parts, axis=axis)
                sums.add(name, rows, columns.astype(np.float64))


def _rows(arrays: Mapping[str, NDArray[Any]], part: slice) -> dict[str, NDArray[Any]]:
    return {name: array[part] if array.ndim else array for name, array in arrays.items()}
