"""Conv and ConvTranspose as regressions: an unknown is an (input channel, tap) of a group.

Which element of the input a tap reads at an output position, or none where it falls on the
padding, is found by running the node itself over numbered elements: pads, strides, dilations and
automatic padding mean what they mean in onnxruntime.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.regression.layers import LinearLayer
from onnxprune.coupling.labels import AxisLabel
from onnxprune.surgery.linear import apply_linear


class Convolution(LinearLayer):
    """One regression for each group.

    Args:
        node: the node.
        shapes: traced shapes of its tensors by name.
        opset: version of the default domain.
    """

    def __init__(self, node: ir.Node, shapes: dict[str, tuple[int, ...]], opset: int) -> None:
        super().__init__(node, 1, shapes)
        self.output_axes = (1,)
        group = node.attributes.get("group")
        self._groups = 1 if group is None else group.as_int()
        self._kernel = self.weight_shape[2:]
        first, second, taps = *self.weight_shape[:2], prod(self._kernel)
        if node.op_type == "ConvTranspose":
            self.shape = (self._groups, second, first // self._groups * taps)
        else:
            self.shape = (self._groups, first // self._groups, second * taps)
        self._opset = opset
        self._transposed = node.op_type == "ConvTranspose"
        self._taps: dict[tuple[int, ...], NDArray[np.int64]] = {}

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return output_shape[0] * prod(output_shape[2:])

    def rows_of(self, data_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return data_shape[0] * len(self._taps_of(data_shape[2:]))

    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        taps = self._taps_of(data.shape[2:])
        samples, places = np.divmod(ids, len(taps))
        count, channels = data.shape[:2]
        padded = np.zeros((count, channels, prod(data.shape[2:]) + 1), np.float32)
        padded[:, :, 1:] = data.reshape(count, channels, -1)
        within = np.arange(channels)[:, np.newaxis] * padded.shape[2] + taps[places][:, np.newaxis]
        where = within + (samples * channels * padded.shape[2])[:, np.newaxis, np.newaxis]
        taken: NDArray[np.float32] = padded.ravel()[where]
        return taken.reshape(len(ids), self._groups, -1)

    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        count, channels = output.shape[:2]
        flat = output.reshape(count, channels, -1)
        samples, places = np.divmod(ids, flat.shape[2])
        return flat[samples, :, places].astype(np.float32).reshape(len(ids), self._groups, -1)

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        first, second = self.weight_shape[:2]
        split = weight.astype(np.float64).reshape(
            self._groups, first // self._groups, second, prod(self._kernel)
        )
        if self._transposed:
            split = split.transpose(0, 2, 1, 3)
        return split.reshape(*split.shape[:2], -1)

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        split = matrix.reshape(*matrix.shape[:2], -1, prod(self._kernel))
        if self._transposed:
            split = split.transpose(0, 2, 1, 3)
        return split.reshape(self.weight_shape)

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        return bias.reshape(1, -1, *[1] * len(self._kernel))

    def unknowns(self, label: AxisLabel, values: NDArray[Any]) -> NDArray[Any] | None:
        """See `LinearLayer`."""
        if label.axes != (1,):
            return None
        spread = np.broadcast_to(values[:, np.newaxis], (len(values), prod(self._kernel)))
        return spread.reshape(self._groups, -1)

    def _taps_of(self, spatial: tuple[int, ...]) -> NDArray[np.int64]:
        """Element of the input that each tap reads, 0 for padding: [output places, taps]."""
        if spatial not in self._taps:
            count = prod(self._kernel)
            numbered = np.arange(1, prod(spatial) + 1, dtype=np.float32).reshape(1, 1, *spatial)
            one_tap_each = np.eye(count, dtype=np.float32).reshape(count, 1, *self._kernel)
            if self._transposed:
                one_tap_each = one_tap_each.swapaxes(0, 1)
            attributes = [one for key, one in self.node.attributes.items() if key != "group"]
            probe = ir.Node("", self.node.op_type, [], attributes, num_outputs=1)
            read = apply_linear(probe, self._opset, numbered, one_tap_each, 1)
            self._taps[spatial] = np.rint(read.reshape(count, -1).T).astype(np.int64)
        return self._taps[spatial]
