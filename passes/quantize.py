"""Quantize: 8-bit weights, and activations where samples say in which range they lie.

Formula, for a tensor x of range [l, h] with scale s and zero point z::

    s = (h - l) / 255        q = round(x / s) + z        x ~ s (q - z)

one s for each output channel of a weight (symmetric, int8), one for each activation (uint8).

Before::

    x -> Conv(W float [64,3,3,3], b) -> y

After (static)::

    x -> QuantizeLinear -> DequantizeLinear -> Conv(DequantizeLinear(W int8), b) -> Quantize...

which onnxruntime runs as one integer convolution.

* static: ranges from the calibration samples; for convolutional networks.
* dynamic: weights only, ranges measured at every run; for transformers and recurrent networks.
* operators: all that onnxruntime can, so that integers go from one layer to the next; or linear
  ones alone, where sums, masks or normalisations spoil the range of an activation. Which, is
  measured in static mode: all of them, unless the outputs on samples that set no range then
  diverge by more than 0.01, and by more than twice as much.
* A QDQ graph can be pruned again: quantised weights are cut with their scales and zero points.

* onnxruntime's integer convolutions take as long for 63 channels as for 96: widths are to be
  multiples of 4, better of 16, before this pass (`prune` with `round_to`). Matrix products take
  what they have to at any width.

Conditions: a float model, of half precision too; one that computes with integers already is
refused. Where onnxruntime finds nothing to quantise, the model stays as it is. Below opset 13 one
scale counts for a whole weight in static mode.

Source: onnxruntime.quantization does the work; Jacob et al. 2018 for the scheme.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from onnxprune.calibration.parts import divide
from onnxprune.calibration.statistics import BATCH
from onnxprune.errors import CalibrationError, InputError
from onnxprune.interop.quantisation import (
    Precision,
    count_quantised,
    is_quantised,
    quantise_dynamic,
    quantise_static,
)
from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime
from onnxprune.verification.divergence import divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.calibration.samples import Samples
    from onnxprune.cost.latency import Latency

__all__ = ["Quantize"]

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_JUDGED_BATCHES = 4
_NEGLIGIBLE = 0.01
_STEP = 4
"""Channels that integer convolutions of onnxruntime compute together (measured, AVX-512 VNNI)."""


class Quantize(ir.passes.FunctionalPass):
    """Make weights 8-bit integers, and with samples activations too, by onnxruntime.

    Args:
        mode: static, with ranges from the samples, or dynamic, with ranges measured at every
            run. Default static with samples, else dynamic.
        per_channel: one scale for every output channel of a weight
        reduce_range: weights of 7 bits, for CPUs without VNNI whose 8-bit products saturate
        method: how the range of an activation follows from the samples, in static mode: minmax,
            entropy or percentile
        operators: what is quantised: all that onnxruntime can, linear for convolutions and matrix
            products alone, or auto: in static mode what is measured to be right, else all
        exclude: patterns of the names of nodes that stay as they are
        samples: calibration samples.
        runtime: how to run the model.

    Attributes:
        details: the mode and operators that were taken, how many nodes compute on integers or
            carry 8-bit weights to others, and how far the outputs diverge with either choice of
            operators, where both were tried.
        prefers: what passes before this one had better be run with. Integer convolutions of
            widths that are no multiple of 4 take 1.5 to 2 times as long as of the next above.

    Raises:
        InputError: for the static mode without samples.
    """

    def __init__(
        self,
        mode: Literal["static", "dynamic"] | None = None,
        per_channel: bool = True,
        reduce_range: bool = False,
        method: Literal["minmax", "entropy", "percentile"] = "minmax",
        operators: Literal["auto", "all", "linear"] = "auto",
        exclude: Sequence[str] = (),
        samples: Samples | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode or ("dynamic" if samples is None else "static")
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.method: Literal["minmax", "entropy", "percentile"] = method
        self.operators = operators
        self.exclude = exclude
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.details: dict[str, Any] = {"mode": self.mode}
        self.prefers: dict[str, int] = {"round_to": _STEP} if self.mode == "static" else {}
        if self.mode == "static" and samples is None:
            raise InputError("static quantisation needs samples; give calibration, or mode dynamic")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantise.

        Raises:
            InputError: when the model is quantised already, or onnxruntime cannot do it.
        """
        if is_quantised(model):
            raise InputError("the model is quantised already; quantise the float model instead")
        operators: str = "all" if self.operators == "auto" else self.operators
        if self.mode == "static" and self.operators == "auto" and self.samples is not None:
            operators = self._measured(model, self.samples)
        made = self._made(model, operators, self.samples)
        self.details |= {"operators": operators, "nodes": count_quantised(made)}
        if not self.details["nodes"]:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(made, modified=True)

    def _made(self, model: ir.Model, operators: str, samples: Samples | None) -> ir.Model:
        chosen = _LINEAR if operators == "linear" else ()
        how = Precision(self.per_channel, self.reduce_range, tuple(self.exclude), chosen)
        if self.mode == "static" and samples is not None:
            return quantise_static(model, samples, how, self.method)
        return quantise_dynamic(model, how)

    def _measured(self, model: ir.Model, samples: Samples) -> str:
        """Which operators to quantise, by the outputs on samples that set no range."""
        try:
            ranges, held = divide(samples)
        except CalibrationError:  # too few to tell
            return "all"
        feeds = list(islice(held.batches(BATCH), _JUDGED_BATCHES))
        wanted = Execution(model, self.runtime).run_all(feeds)
        lost = {}
        for operators in ("all", "linear"):
            made = self._made(model, operators, ranges)
            got = Execution(made, self.runtime).run_all(feeds)
            lost[operators] = divergence(model, list(zip(wanted, got, strict=True)))
            if lost["all"] <= _NEGLIGIBLE:
                break
        self.details["divergence"] = lost
        return "all" if lost["all"] <= max(_NEGLIGIBLE, 2 * lost.get("linear", 0.0)) else "linear"

    def remark(self, latency: Latency | None) -> str:
        """What to tell people: whether the model has become faster, with the measured figure."""
        if not self.details.get("nodes"):
            return "onnxruntime found nothing to quantise; the model is as it was"
        if latency is None:
            return ""
        low, high = latency.interval
        figure = (
            f"a run takes {latency.ratio:.1%} of the time it took before (between {low:.1%} and "
            f"{high:.1%})"
        )
        if high < 1:
            return f"{self.mode} quantisation makes this model faster: {figure}"
        return (
            f"{self.mode} quantisation does not make this model faster here: {figure}; it is "
            "smaller. Convolutions want widths that are multiples of 4 or 16 (round_to of prune)"
        )
