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
* A QDQ graph can be pruned again: quantised weights are cut with their scales and zero points.

Conditions: a float model; one that computes with integers already is refused.

Source: onnxruntime.quantization does the work; Jacob et al. 2018 for the scheme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from onnxprune.errors import InputError
from onnxprune.interop.quantisation import (
    Precision,
    is_quantised,
    quantise_dynamic,
    quantise_static,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.calibration.samples import Samples

__all__ = ["Quantize"]


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
        details: the mode that was taken.

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
        return ir.passes.PassResult(made, modified=True)
