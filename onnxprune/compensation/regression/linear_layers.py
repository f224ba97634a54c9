"""Linear nodes as plain regressions: y = W x + b over rows, whatever the op, its axes or its taps.

Every Conv, ConvTranspose, Gemm, MatMul or Einsum that multiplies one activation with one constant
is brought to the form

    Y[r, g, o] = sum_d M[g, o, d] X[r, g, d] + b[g, o]

with rows r (sample and position), groups g, outputs o and unknowns d.

Gemm, MatMul and Einsum: axes are named by letters. Rows are the axes that activation and output
share, unknowns the summed ones, outputs those the weight brings.

Conv and ConvTranspose: an unknown is an (input channel, tap) of a group. Which element of the input
a tap reads at an output position, or none where it falls on the padding, is computed by running the
node itself over numbered elements: pads, strides, dilations and automatic padding mean what they
mean in onnxruntime.
"""

from __future__ import annotations

import abc
import string
from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import drawn_rows, rows_by_weight
from onnxprune.calibration.sensitivity import OutputSensitivity
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.groups import Reading
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.trace import Coupling
from onnxprune.surgery.linear import LINEAR_OPS, apply_linear

Kept: TypeAlias = "NDArray[np.bool_] | None"
"""Which unknowns or outputs are wanted; None for all."""

WEIGHT_MOVEMENTS = frozenset({"Transpose", "Identity", "Reshape", "Cast", "Unsqueeze", "Squeeze"})
"""Ops a weight may come through and still be replaced."""


class NoRegressionError(ValueError):
    """Says why a node is no regression of its own; the text completes "not re-fitted: "."""


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
    def rows(
        self, data: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """X: what the node reads in some rows, float32 [ids, groups, unknowns].

        Args:
            data: what it reads.
            ids: numbers of the rows.
            kept: with one group, the unknowns that are wanted, bool [unknowns]; None for all.
        """

    @abc.abstractmethod
    def outputs(
        self, output: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """Y: what an array shaped like the output holds in some rows, [ids, groups, outputs].

        Args:
            output: such an array.
            ids: numbers of the rows.
            kept: with one group, the outputs that are wanted, bool [outputs]; None for all.
        """

    @abc.abstractmethod
    def row_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """What an array holds in every row that has extent 1 along `output_axes`: [rows]."""

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

    def bias(self) -> tuple[ir.Value | None, float, tuple[int, ...]]:
        """What the node itself adds: the value, its factor, and the axes of the output it is along.

        The value is None where nothing is added.
        """
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        beta = self.node.attributes.get("beta") if self.node.op_type == "Gemm" else None
        along = (0, 1) if self.node.op_type == "Gemm" else (1,)
        return value, 1.0 if beta is None else beta.as_float(), along

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
        return np.asarray(self.outputs(kept, np.zeros(1, np.int64))[0] > 0)


class Contraction(LinearLayer):
    """One group of rows.

    Raises:
        NoRegressionError: when the node is a stack of products, or no product of this kind.
    """

    def __init__(self, node: ir.Node, slot: int, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(node, slot, shapes)
        ranks = [len(shapes[v.name or ""]) if v is not None else 0 for v in node.inputs[:2]]
        terms = letters_of(node, ranks)
        self._read, self._made, self._output = terms[1 - slot], terms[slot], terms[2]
        summed = [c for c in self._made if c not in self._output]
        own = [c for c in self._made if c in self._output and c not in self._read]
        kept = [c for c in self._output if c not in own]
        if {*self._made} != {*summed, *own} or {*self._read} != {*summed, *kept}:
            raise NoRegressionError("its weights differ between rows (a stack of matrices)")
        if not own or not summed:
            raise NoRegressionError("it sums over nothing, or makes nothing of its own")
        self._summed, self._own, self._kept = "".join(summed), "".join(own), "".join(kept)
        self._extents = dict(zip(self._made, self.weight_shape, strict=True))
        if any(self._extents[c] != self.data_shape[self._read.index(c)] for c in summed):
            raise NoRegressionError("an axis that it sums over is broadcast")
        self.output_axes = tuple(self._output.index(c) for c in own)
        made, read = (prod(self._extents[c] for c in letters) for letters in (own, summed))
        self.shape = (1, made, read)
        alpha = node.attributes.get("alpha") if node.op_type == "Gemm" else None
        self._alpha = 1.0 if alpha is None else alpha.as_float()
        if not self._alpha:
            raise NoRegressionError("its product counts nothing (alpha is 0)")

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return prod(output_shape[self._output.index(c)] for c in self._kept)

    def rows_of(self, data_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return prod(data_shape[self._read.index(c)] for c in self._kept)

    def rows(
        self, data: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        taken = self._select(data, self._read, self._summed, ids)
        return taken if kept is None else taken[:, :, kept]

    def outputs(
        self, output: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        taken = self._select(output, self._output, self._own, ids)
        return taken if kept is None else taken[:, :, kept]

    def row_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """See `LinearLayer`."""
        return values.transpose([self._output.index(c) for c in self._kept + self._own]).reshape(-1)

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        moved = weight.transpose([self._made.index(c) for c in self._own + self._summed])
        unknowns = prod(self._extents[c] for c in self._summed)
        return self._alpha * moved.reshape(1, -1, unknowns).astype(np.float64)

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        letters = self._own + self._summed
        array = matrix.reshape([self._extents[c] for c in letters]) / self._alpha
        return array.transpose([letters.index(c) for c in self._made])

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        array = bias.reshape([self._extents[c] for c in self._own])
        order = sorted(range(len(self._own)), key=lambda i: self._output.index(self._own[i]))
        along = [self._extents[c] if c in self._own else 1 for c in self._output]
        return array.transpose(order).reshape(along)

    def unknowns(self, label: AxisLabel, values: NDArray[Any]) -> NDArray[Any] | None:
        """See `LinearLayer`."""
        letters = [self._read[axis] for axis in label.axes]
        if not {*letters} <= {*self._summed}:
            return None
        order = [letters.index(c) for c in self._summed if c in letters]
        along = [self._extents[c] if c in letters else 1 for c in self._summed]
        whole = [self._extents[c] for c in self._summed]
        return np.broadcast_to(values.transpose(order).reshape(along), whole).reshape(1, -1)

    def _select(
        self, array: NDArray[Any], letters: str, last: str, ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        flat = array.transpose([letters.index(c) for c in self._kept + last])
        flat = flat.reshape(-1, prod(self._extents[c] for c in last))
        return flat[ids].astype(np.float32)[:, np.newaxis]


def letters_of(node: ir.Node, ranks: list[int]) -> tuple[str, str, str]:
    """Letters of the axes of both inputs and of the output of a Gemm, MatMul or Einsum.

    Args:
        node: the node.
        ranks: of its two inputs.

    Raises:
        NoRegressionError: for a product with a vector, or an Einsum of another kind.
    """
    if node.op_type == "Einsum":
        equation = node.attributes["equation"].as_string().replace(" ", "")
        inputs, _, output = equation.partition("->")
        if inputs.count(",") != 1:
            raise NoRegressionError("an Einsum of more or fewer than two tensors")
        if "->" not in equation:
            output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
        first, _, second = inputs.partition(",")
        if "." in equation or any(len({*t}) != len(t) for t in (first, second, output)):
            raise NoRegressionError("an Einsum with an ellipsis or a repeated letter")
        return first, second, output
    if node.op_type == "Gemm":
        left, right = (node.attributes.get(key) for key in ("transA", "transB"))
        return (
            "ki" if left is not None and left.as_int() else "ik",
            "jk" if right is not None and right.as_int() else "kj",
            "ij",
        )
    if min(ranks) < 2:
        raise NoRegressionError("a product with a vector")
    batch = string.ascii_lowercase[: max(ranks) - 2]
    first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return f"{first}xy", f"{second}yz", f"{batch}xz"


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

    def rows(
        self, data: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        taps = self._taps_of(data.shape[2:])
        samples, places = np.divmod(ids, len(taps))
        read = taps.T[:, places]
        channels: Kept = None
        if kept is not None:
            channels = np.asarray(kept.reshape(data.shape[1], -1).any(axis=1))
        taken = _gathered(data, samples, np.maximum(read - 1, 0), channels)
        for tap, elements in enumerate(read):
            taken[:, tap, np.flatnonzero(elements == 0)] = 0
        columns = taken.reshape(self._groups, -1, len(ids))
        if kept is not None and channels is not None:
            some = kept.reshape(data.shape[1], -1)[channels].ravel()
            columns = columns if some.all() else columns[:, some]
        return columns.transpose(2, 0, 1)

    def outputs(
        self, output: NDArray[Any], ids: NDArray[np.int64], kept: Kept = None
    ) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        samples, places = np.divmod(ids, prod(output.shape[2:]))
        taken = _gathered(output, samples, places[np.newaxis], kept)
        return taken.reshape(self._groups, -1, len(ids)).transpose(2, 0, 1)

    def row_values(self, values: NDArray[Any]) -> NDArray[Any]:
        """See `LinearLayer`."""
        return values.reshape(-1)

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
            attributes = [
                attribute for key, attribute in self.node.attributes.items() if key != "group"
            ]
            probe = ir.Node("", self.node.op_type, [], attributes, num_outputs=1)
            read = apply_linear(probe, self._opset, numbered, one_tap_each, 1)
            self._taps[spatial] = np.rint(read.reshape(count, -1).T).astype(np.int64)
        return self._taps[spatial]


def _gathered(
    data: NDArray[Any], samples: NDArray[np.int64], elements: NDArray[np.int64], kept: Kept = None
) -> NDArray[np.float32]:
    """Take elements of maps, sample by sample: what is taken of one lies in the cache.

    Args:
        data: [samples, channels, ...].
        samples: sample of each row, [rows].
        elements: what each row takes of every map of its sample, [taps, rows].
        kept: channels that are wanted, bool [channels]; None for all.

    Returns:
        float32 [channels, taps, rows].
    """
    maps = data.reshape(*data.shape[:2], -1)
    channels = None if kept is None or kept.all() else np.flatnonzero(kept)
    count = data.shape[1] if channels is None else len(channels)
    taken = np.empty((count, *elements.shape), np.float32)
    if np.any(np.diff(samples) < 0):
        order = np.argsort(samples, kind="stable")
        taken[:, :, order] = _gathered(data, samples[order], elements[:, order], kept)
        return taken
    ends = np.searchsorted(samples, np.arange(len(data) + 1))
    for sample in np.flatnonzero(np.diff(ends)):
        part = slice(ends[sample], ends[sample + 1])
        some = maps[sample] if channels is None else maps[sample].take(channels, axis=0)
        # elements are within bounds: "clip" only leaves out that numpy looks once more
        taken[:, :, part] = some.take(elements[:, part], axis=1, mode="clip")
    return taken


def linear_layer(node: ir.Node, coupling: Coupling, opset: int) -> LinearLayer | None:
    """Describe a node as a regression; None for what `regression_of` refuses."""
    try:
        return regression_of(node, coupling, opset)
    except NoRegressionError:
        return None


def regression_of(node: ir.Node, coupling: Coupling, opset: int) -> LinearLayer:
    """Describe a node as a regression.

    Args:
        node: any node.
        coupling: labels and shapes of its tensors.
        opset: version of the default domain.

    Raises:
        NoRegressionError: for other ops, for products of two activations, and for weights that
            differ along an axis of the rows (a stack of matrices).
    """
    if node.domain or node.op_type not in LINEAR_OPS or len(node.inputs) < 2:
        raise NoRegressionError(f"{node.op_type} is no linear layer by itself")
    shapes: dict[str, tuple[int, ...]] = {}
    constant: list[int] = []
    for slot, value in enumerate((*node.inputs[:2], node.outputs[0])):
        name = value.name or "" if value is not None else ""
        known = coupling.tensors.get(name)
        if known is None or name not in coupling.facts.first.shapes:
            raise NoRegressionError("the shape of what it reads or makes is unknown")
        shapes[name] = coupling.facts.first.shapes[name]
        if slot < 2 and known.constant:
            if not _is_known(value):
                raise NoRegressionError("its weight is a state of the body it is in")
            constant.append(slot)
    if len(constant) != 1:
        which = "constants" if constant else "activations"
        raise NoRegressionError(f"a product of two {which}")
    slot = constant[0]
    if node.op_type not in ("Conv", "ConvTranspose"):
        return Contraction(node, slot, shapes)
    if slot == 0:
        raise NoRegressionError("it convolves a constant")
    return Convolution(node, shapes, opset)


def replaceable_layers(model: ir.Model, coupling: Coupling) -> list[LinearLayer]:
    """Layers whose float weight nothing else reads, in graph order, those in bodies included."""
    return [layer for layer in linear_layers(model, coupling) if not why_weight_stays(layer)]


def linear_layers(model: ir.Model, coupling: Coupling) -> list[LinearLayer]:
    """All nodes that are plain regressions, in graph order, those in bodies included."""
    opset = model.opset_imports.get("", 1)
    layers = (linear_layer(node, coupling, opset) for node in coupling.nodes(model.graph))
    return [layer for layer in layers if layer is not None]


def drawn_layer_rows(
    sensitivity: OutputSensitivity,
    layer: LinearLayer,
    counts: Sequence[int],
    most: int,
    seed: Sequence[int],
) -> Sequence[tuple[NDArray[np.int64], NDArray[np.float32] | None]]:
    """Draw rows of a layer, more of those that the answers react to.

    Args:
        sensitivity: of the original.
        layer: of whatever model has the same tensors.
        counts: rows of each batch.
        most: rows to draw from all batches together.
        seed: of what is drawn.

    Returns:
        for each batch the rows drawn, int64, and how much each counts, float32; None for all alike.
    """
    weights = layer_row_weights(sensitivity, layer, counts)
    if weights is None:
        return [(ids, None) for ids in drawn_rows(counts, most, seed)]
    return rows_by_weight(weights, most, seed)


def layer_row_weights(
    sensitivity: OutputSensitivity, layer: LinearLayer, counts: Sequence[int]
) -> list[NDArray[np.float32]] | None:
    """How much each row of a layer counts, for each batch [rows]; None where all count alike.

    Args:
        sensitivity: of the original.
        layer: of whatever model has the same tensors.
        counts: rows of each batch.
    """
    known = sensitivity.weights(layer.node.outputs[0].name or "", len(counts))
    weights = [layer.row_values(each) for each in known or ()]
    return weights if weights and [len(each) for each in weights] == list(counts) else None


def _is_known(value: ir.Value | None) -> bool:
    """Whether a constant is worked out from constants, not from the states of a Loop or Scan."""
    waiting = [value]
    while waiting:
        leaf = waiting.pop()
        producer = leaf.producer() if leaf is not None else None
        if producer is not None:
            waiting += producer.inputs
        elif leaf is not None and not leaf.is_initializer():
            return False
    return True


def reading_unknowns(layer: LinearLayer, reading: Reading) -> NDArray[Any] | None:
    """Unit of each unknown of a layer, -1 for none, [groups, unknowns]; None if rows differ."""
    return layer.unknowns(AxisLabel(reading.axes, reading.units.astype(np.int32)), reading.units)


def why_weight_stays(layer: LinearLayer) -> str:
    """Why the weight of a layer cannot be replaced; empty where it can."""
    value = layer.node.inputs[layer.slot]
    while value is not None:
        if value.is_graph_output():
            return "its weight is an output too"
        if len(value.uses()) != 1:
            return "its weight is read by several nodes"
        producer = value.producer()
        if producer is None or producer.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                return "its weight comes from around the body it is in"
            return "" if tensor.dtype.is_floating_point() else "its weight is of integers"
        if producer.op_type not in WEIGHT_MOVEMENTS or producer.domain:
            return f"its weight is worked out by {producer.op_type}"
        value = producer.inputs[0]
    return "its weight is worked out from nothing"
