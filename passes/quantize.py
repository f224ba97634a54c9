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
* dynamic: weights only, ranges measured at every run; for transformers and recurrent networks. In
  static mode large negative numbers that mask attention spoil the range of what they are added to;
  `exclude` the nodes that do it.
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

from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.interop.quantisation import (
    Precision,
    count_quantised,
    is_quantised,
    quantise_dynamic,
    quantise_static,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.calibration.samples import Samples
    from onnxprune.cost.latency import Latency

__all__ = ["Quantize"]

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
        exclude: patterns of the names of nodes that stay as they are
        samples: calibration samples.

    Attributes:
        details: the mode that was taken, and how many nodes compute on integers or carry 8-bit
            weights to others.
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
        exclude: Sequence[str] = (),
        samples: Samples | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode or ("dynamic" if samples is None else "static")
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.method: Literal["minmax", "entropy", "percentile"] = method
        self.exclude = exclude
        self.samples = samples
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
        how = Precision(self.per_channel, self.reduce_range, tuple(self.exclude))
        if self.mode == "static" and self.samples is not None:
            made = quantise_static(model, self.samples, how, self.method)
        else:
            made = quantise_dynamic(model, how)
        self.details["nodes"] = count_quantised(made)
        if not self.details["nodes"]:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(made, modified=True)

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
