"""Where the windows of convolutions and pooling lie: kernel, strides, dilations, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.gradients.step import GradientStep


@dataclass(frozen=True)
class Windows:
    """Attributes of a convolution or pooling node, one entry for each spatial axis.

    Attributes:
        kernel: extent of a window.
        strides: from one window to the next.
        dilations: from one tap of a window to the next.
        begin: padding before.
        end: padding behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    def attributes(self) -> dict[str, Any]:
        """As attributes of a node."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.begin, *self.end],
        }

    def spread(
        self, step: GradientStep, gradient: ir.Value, weight: ir.Value, read: ir.Value, group: int
    ) -> ir.Value:
        """Append the transposed convolution that undoes a convolution over these windows.

        Without padding it reaches at least as far as the padded input did, whatever the stride left
        over; what lies in the padding is then cut off.

        Args:
            step: the node.
            gradient: of the loss with respect to what the convolution gives.
            weight: of the convolution, [out, in / group, *kernel].
            read: what has the extents of the convolution's input.
            group: of the convolution.
        """
        emit = step.emit
        attributes = {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "group": group,
        }
        if set(self.strides) == {1}:
            pads = [*self.begin, *self.end]
            return emit.op("ConvTranspose", gradient, weight, pads=pads, **attributes)
        reach = [stride - 1 for stride in self.strides]
        whole = emit.op("ConvTranspose", gradient, weight, output_padding=reach, **attributes)
        axes = range(2, 2 + len(self.kernel))
        start = emit.integers(*self.begin)
        stop = emit.op("Add", emit.extents(read, axes.start, axes.stop), start)
        return emit.op("Slice", whole, start, stop, emit.integers(*axes))


def windows_of(step: GradientStep, kernel: tuple[int, ...], *, transposed: bool = False) -> Windows:
    """Windows of a node.

    Args:
        step: the node; padding that depends on extents is taken from those observed.
        kernel: its kernel.
        transposed: the windows lie in the output.
    """
    count = len(kernel)
    strides = tuple(step.attribute("strides") or (1,) * count)
    dilations = tuple(step.attribute("dilations") or (1,) * count)
    wide, narrow = step.input(), step.output
    if transposed:
        wide, narrow = narrow, wide
    sizes = [step.emit.shape_seen(value)[2:] for value in (wide, narrow)]
    reach = [
        (sizes[1][axis] - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        for axis in range(count)
    ]
    automatic = step.attribute("auto_pad", "NOTSET")
    sized = step.attribute("output_shape") is not None
    if automatic in ("NOTSET", "VALID") and not sized:
        pads = tuple(step.attribute("pads") or ()) if automatic == "NOTSET" else ()
        pads = pads or (0,) * 2 * count
        before, behind = pads[:count], pads[count:]
        if int(step.attribute("ceil_mode", 0)):
            needed = [reach[axis] - sizes[0][axis] - before[axis] for axis in range(count)]
            behind = tuple(max(*pair) for pair in zip(behind, needed, strict=True))
        return Windows(kernel, strides, dilations, before, behind)
    begin, end = [], []
    for axis in range(count):
        missing = max(reach[axis] - sizes[0][axis], 0)
        small, large = missing // 2, missing - missing // 2
        upper = automatic == "SAME_UPPER" or (transposed and automatic != "SAME_LOWER")
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return Windows(kernel, strides, dilations, tuple(begin), tuple(end))
