"""Linear nodes as plain regressions: y = W x + b over rows, whatever the op, its axes or its taps.

Every Conv, ConvTranspose, Gemm, MatMul or Einsum that multiplies one activation with one constant
is brought to the form

    Y[r, g, o] = sum_d M[g, o, d] X[r, g, d] + b[g, o]

with rows r (sample and position), groups g, outputs o and unknowns d. A convolution has
d = (input channel of the group, tap), zero where the tap falls on the padding; which input element
a tap reads at an output position is found by running the node itself over numbered elements, so
that pads, strides, dilations and automatic padding mean what they mean in onnxruntime.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.surgery.linear import LINEAR_OPS, apply_linear

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import NDArray

    from onnxprune.coupling.labels import Layer

__all__ = ["LinearLayer", "linear_layer"]


class LinearLayer(Protocol):
    """A linear node as a regression.

    Attributes:
        node: the node.
        data: name of the activation it reads.
        slot: input slot of the weight.
        output_axes: axes of the output whose positions the weight makes.
    """

    node: ir.Node
    data: str
    slot: int
    output_axes: tuple[int, ...]

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        """Number of rows a run has."""

    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """X: what the node reads in some rows, float32 [ids, groups, unknowns]."""

    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Y: what an array shaped like the output holds in some rows, [ids, groups, outputs]."""

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """M of a weight tensor, float64 [groups, outputs, unknowns]."""

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weight tensor of M: the inverse of `matrix`."""

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bias [groups, outputs] in the rank of the output, to be broadcast against it."""

    def unknowns(
        self, layer: Layer, values: NDArray[Any], shape: tuple[int, ...]
    ) -> NDArray[Any] | None:
        """Spread values over the positions of a label of the input to [groups, unknowns].

        None when the label says nothing about unknowns, or not the same for all rows.
        """


def linear_layer(
    node: ir.Node, constants: Container[str], opset: int, shapes: dict[str, tuple[int, ...]]
) -> LinearLayer | None:
    """Describe a node as a regression.

    Args:
        node: any node.
        constants: names of the constants, derived ones included.
        opset: version of the default domain.
        shapes: traced shapes of its tensors by name.

    Returns:
        None for other ops, for products of two activations, and for weights that differ along an
        axis of the rows (a stack of matrices).
    """
    if node.domain or node.op_type not in LINEAR_OPS or len(node.inputs) < 2:
        return None
    names = [value.name or "" if value is not None else "" for value in node.inputs[:2]]
    slots = [slot for slot, name in enumerate(names) if name in constants]
    output = node.outputs[0].name or ""
    if len(slots) != 1 or any(name not in shapes for name in (*names, output)):
        return None
    slot = slots[0]
    data, weight = shapes[names[1 - slot]], shapes[names[slot]]
    if node.op_type in ("Conv", "ConvTranspose"):
        return _Convolution(node, names[0], weight, opset) if slot == 1 else None
    terms = _terms(node, [shapes[name] for name in names])
    return _contraction(node, names[1 - slot], slot, terms, data, weight)


def _terms(node: ir.Node, shapes: list[tuple[int, ...]]) -> tuple[str, str, str] | None:
    """Letters of the axes of both inputs and of the output."""
    if node.op_type == "Einsum":
        equation = node.attributes["equation"].as_string().replace(" ", "")
        inputs, _, output = equation.partition("->")
        if "->" not in equation:
            output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
        first, _, second = inputs.partition(",")
        plain = all(len(set(t)) == len(t) for t in (first, second, output))
        return (first, second, output) if plain and "." not in equation else None
    if node.op_type == "Gemm":
        left = "ki" if _integer(node, "transA") else "ik"
        return left, "jk" if _integer(node, "transB") else "kj", "ij"
    ranks = [len(shape) for shape in shapes]
    if min(ranks) < 2:
        return None
    batch = string.ascii_lowercase[: max(ranks) - 2]
    return (
        f"{batch[len(batch) - ranks[0] + 2 :]}xy",
        f"{batch[len(batch) - ranks[1] + 2 :]}yz",
        f"{batch}xz",
    )


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def _contraction(
    node: ir.Node,
    data: str,
    slot: int,
    terms: tuple[str, str, str] | None,
    data_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
) -> LinearLayer | None:
    if terms is None:
        return None
    read, weight, output = terms[1 - slot], terms[slot], terms[2]
    summed = "".join(c for c in weight if c not in output)
    own = "".join(c for c in weight if c in output and c not in read)
    kept = "".join(c for c in output if c not in own)
    if set(weight) != {*summed, *own} or set(read) != {*summed, *kept} or not own or not summed:
        return None
    extents = dict(zip(weight, weight_shape, strict=True))
    alpha = node.attributes.get("alpha") if node.op_type == "Gemm" else None
    return _Contraction(
        node=node,
        data=data,
        slot=slot,
        output_axes=tuple(output.index(c) for c in own),
        read=read,
        weight=weight,
        output=output,
        kept=kept,
        summed=summed,
        own=own,
        extents=extents,
        alpha=1.0 if alpha is None else alpha.as_float(),
    )


@dataclass(frozen=True)
class _Contraction:
    """Gemm, MatMul, Einsum: one group; axes are named by letters.

    Attributes:
        read: letters of the activation.
        weight: letters of the weight.
        output: letters of the output.
        kept: letters of the rows.
        summed: letters of the unknowns.
        own: letters of the outputs.
        extents: extent of each letter of the weight.
        alpha: factor of a Gemm.
    """

    node: ir.Node
    data: str
    slot: int
    output_axes: tuple[int, ...]
    read: str
    weight: str
    output: str
    kept: str
    summed: str
    own: str
    extents: dict[str, int]
    alpha: float

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        return prod(output_shape[self.output.index(c)] for c in self.kept)

    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._select(data, self.read, self.summed, ids)

    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._select(output, self.output, self.own, ids)

    def _select(
        self, array: NDArray[Any], letters: str, last: str, ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        flat = array.transpose([letters.index(c) for c in self.kept + last])
        flat = flat.reshape(-1, prod(self.extents[c] for c in last))
        return flat[ids].astype(np.float32)[:, np.newaxis]

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        moved = weight.transpose([self.weight.index(c) for c in self.own + self.summed])
        unknowns = prod(self.extents[c] for c in self.summed)
        return self.alpha * moved.reshape(1, -1, unknowns).astype(np.float64)

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        letters = self.own + self.summed
        array = matrix.reshape([self.extents[c] for c in letters]) / self.alpha
        return array.transpose([letters.index(c) for c in self.weight])

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        array = bias.reshape([self.extents[c] for c in self.own])
        order = sorted(range(len(self.own)), key=lambda i: self.output.index(self.own[i]))
        array = array.transpose(order)
        return array.reshape([self.extents[c] if c in self.own else 1 for c in self.output])

    def unknowns(
        self, layer: Layer, values: NDArray[Any], shape: tuple[int, ...]
    ) -> NDArray[Any] | None:
        del shape
        letters = [self.read[axis] for axis in layer.axes]
        if not set(letters) <= set(self.summed):
            return None
        order = [letters.index(c) for c in self.summed if c in letters]
        extents = [self.extents[c] for c in self.summed]
        spread = values.transpose(order).reshape(
            [self.extents[c] if c in letters else 1 for c in self.summed]
        )
        return np.broadcast_to(spread, extents).reshape(1, -1)


class _Convolution:
    """Conv and ConvTranspose with groups.

    Args:
        node: the node.
        data: name of its input.
        weight_shape: [O, I/groups, *kernel], or [I, O/groups, *kernel] transposed.
        opset: version of the default domain.
    """

    def __init__(self, node: ir.Node, data: str, weight_shape: tuple[int, ...], opset: int) -> None:
        self.node = node
        self.data = data
        self.slot = 1
        self.output_axes = (1,)
        self._opset = opset
        self._groups = max(_integer(node, "group"), 1)
        self._shape = weight_shape
        self._kernel = weight_shape[2:]
        self._taps: dict[tuple[int, ...], NDArray[np.int64]] = {}

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "ConvTranspose"

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        return output_shape[0] * prod(output_shape[2:])

    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        taps = self._taps_of(data.shape[2:])
        samples, places = np.divmod(ids, len(taps))
        count, channels = data.shape[:2]
        padded = np.zeros((count, channels, prod(data.shape[2:]) + 1), np.float32)
        padded[:, :, 1:] = data.reshape(count, channels, -1)
        within = np.arange(channels)[:, np.newaxis] * padded.shape[2] + taps[places][:, np.newaxis]
        where = within + (samples * channels * padded.shape[2])[:, np.newaxis, np.newaxis]
        return padded.ravel()[where].reshape(len(ids), self._groups, -1)

    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        count, channels = output.shape[:2]
        flat = output.reshape(count, channels, -1)
        samples, places = np.divmod(ids, flat.shape[2])
        return flat[samples, :, places].astype(np.float32).reshape(len(ids), self._groups, -1)

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        first, second = self._shape[:2]
        split = weight.astype(np.float64).reshape(
            self._groups, first // self._groups, second, prod(self._kernel)
        )
        if self._transposed:
            split = split.transpose(0, 2, 1, 3)
        return split.reshape(*split.shape[:2], -1)

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        split = matrix.reshape(*matrix.shape[:2], -1, prod(self._kernel))
        if self._transposed:
            split = split.transpose(0, 2, 1, 3)
        return split.reshape(self._shape)

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        return bias.reshape(1, -1, *[1] * len(self._kernel))

    def unknowns(
        self, layer: Layer, values: NDArray[Any], shape: tuple[int, ...]
    ) -> NDArray[Any] | None:
        if layer.axes != (1,):
            return None
        taps = prod(self._kernel)
        spread = np.broadcast_to(values[:, np.newaxis], (shape[1], taps))
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
