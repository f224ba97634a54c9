"""Linear nodes as plain regressions: y = W x + b over rows, whatever the op, its axes or its taps.

Every Conv, ConvTranspose, Gemm, MatMul or Einsum that multiplies one activation with one constant
is brought to the form

    Y[r, g, o] = sum_d M[g, o, d] X[r, g, d] + b[g, o]

with rows r (sample and position), groups g, outputs o and unknowns d.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.coupling.labels import AxisLabel


class LinearLayer(abc.ABC):
    """A linear node as a regression.

    Attributes:
        node: the node.
        slot: input slot of the weight.
        data: name of the activation it reads.
        weight: name of the constant.
        data_shape: traced shape of the activation.
        weight_shape: shape of the constant.
        output_shape: traced shape of the output.
        output_axes: axes of the output whose positions the weight makes.
        shape: groups, outputs and unknowns of M.
    """

    output_axes: tuple[int, ...]
    shape: tuple[int, int, int]

    def __init__(self, node: ir.Node, slot: int, shapes: dict[str, tuple[int, ...]]) -> None:
        names = [value.name or "" if value is not None else "" for value in node.inputs[:2]]
        self.node = node
        self.slot = slot
        self.data, self.weight = names[1 - slot], names[slot]
        self.data_shape, self.weight_shape = shapes[self.data], shapes[self.weight]
        self.output_shape = shapes[node.outputs[0].name or ""]

    @abc.abstractmethod
    def row_count(self, output_shape: tuple[int, ...]) -> int:
        """Number of rows of a run whose output has this shape."""

    @abc.abstractmethod
    def rows_of(self, data_shape: tuple[int, ...]) -> int:
        """Number of rows of a run whose input has this shape."""

    @abc.abstractmethod
    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """X: what the node reads in some rows, float32 [ids, groups, unknowns]."""

    @abc.abstractmethod
    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Y: what an array shaped like the output holds in some rows, [ids, groups, outputs]."""

    @abc.abstractmethod
    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """M of a weight tensor, float64 [groups, outputs, unknowns]."""

    @abc.abstractmethod
    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weight tensor of M: the inverse of `matrix`."""

    @abc.abstractmethod
    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bias [groups, outputs] in the rank of the output, to be broadcast against it."""

    @abc.abstractmethod
    def unknowns(self, label: AxisLabel, values: NDArray[Any]) -> NDArray[Any] | None:
        """Spread values over the positions of a label of the input to [groups, unknowns].

        None when the label lies on other axes too, so that rows differ.
        """

    def kept_unknowns(self, cut: Cut) -> NDArray[np.bool_] | None:
        """Unknowns that stay under a cut, bool [groups, unknowns].

        None when rows differ in them.
        """
        kept = np.ones((self.shape[0], self.shape[2]), bool)
        for label in cut.coupling.tensors[self.data].axis_labels:
            alive = cut.alive(label)
            if alive.all():
                continue
            spread = self.unknowns(label, alive)
            if spread is None:
                return None
            kept &= spread
        return kept

    def kept_outputs(self, cut: Cut) -> NDArray[np.bool_]:
        """Outputs that stay under a cut, bool [groups, outputs]."""
        shape = [n if a in self.output_axes else 1 for a, n in enumerate(self.output_shape)]
        kept = np.ones(shape, bool)
        for label in cut.coupling.tensors[self.node.outputs[0].name or ""].axis_labels:
            if set(label.axes) <= set(self.output_axes):
                alive = cut.alive(label).transpose(np.argsort(label.axes))
                along = [n if a in label.axes else 1 for a, n in enumerate(shape)]
                kept = kept & alive.reshape(along)
        whole = np.broadcast_to(kept, self.output_shape)
        return np.asarray(self.outputs(whole, np.zeros(1, np.int64))[0] > 0)
