"""Value numbers: which units of a group hold the same, up to a factor, whatever the input.

At every tensor that carries the group, the slice of unit u is factor_u * R[number_u]. Constants
are numbered by their slices; from there one walk over the nodes that touch the group numbers every
activation: two units have the same number where the same op is applied to slices of the same
numbers. What no rule understands gives every unit a number of its own. So equal numbers are a
proof, and no input is needed to find them. What each op makes of them::

    linear        f x -> f y(x)
    homogeneous   f x -> |f| y(sign(f) x)                    Relu, LeakyRelu, MaxPool, ...
    product       (f x) * (g z) -> (f g) y(x, z)             Mul, depthwise Conv
    sum           f x + g z -> norm(f, g) y(x, z, direction of (f, g))
    anything      f x -> y(x, f)                             Gelu, Sigmoid, Clip, ...

x, z are the numbers, y the new number; units of the same (...) get the same y.

Slices that are equal, or equal up to a factor, are found in near-linear time: every row is reduced
to its norm and its product with one random vector, and only neighbours in the order of the products
are compared entry by entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.groups import Group, unit_positions
from onnxprune.coupling.step import Consumer
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import node_id
from onnxprune.model.node_view import NodeView
from onnxprune.model.observe import ConstantValues


class NumberedNode(NodeView):
    """A node as the rules see it.

    Attributes:
        numbering: of the group.
        carried: input slot -> the layer through which the group enters and passes on.
    """

    def __init__(self, numbering: Numbering, node: ir.Node, consumers: Sequence[Consumer]) -> None:
        super().__init__(node, value_of=numbering.constant)
        self.numbering = numbering
        self._contracted = {(consumer.tensor, consumer.axis) for consumer in consumers}
        self._contracted |= {
            (consumer.weight or "", consumer.weight_axis) for consumer in consumers
        }
        entering = {
            slot: self._passing(value.name or "")
            for slot, value in enumerate(node.inputs)
            if value is not None
        }
        self.carried = {slot: layers[0] for slot, layers in entering.items() if layers}
        outputs = [numbering.layers.get(value.name or "", []) for value in node.outputs]
        every = [*entering.values(), *outputs]
        self._entering = [
            (value.name or "", layer)
            for slot, value in enumerate(node.inputs)
            if value is not None
            for layer in entering[slot]
        ]
        self._clear = all(len(layers) <= 1 for layers in every) and not any(
            layer.foreign for layers in every for layer in layers
        )
        self._depends = any(
            slot not in self.carried and not self._constant(value.name or "")
            for slot, value in enumerate(node.inputs)
            if value is not None
        )

    def visit(self) -> None:
        """Number what the node makes, and note units it mixes with others."""
        numbering = self.numbering
        entering = np.zeros(numbering.group.size, bool)
        for name, layer in self._entering:
            entering |= numbering.values(name, layer).number > ZERO
        rule: Callable[[NumberedNode], Values | None] | None = None
        if self._clear and not self.node.domain:
            rule = NUMBERING.get(self.node.op_type)
        made = rule(self) if rule is not None else None
        leaving = np.zeros(numbering.group.size, bool)
        for value in self.node.outputs:
            for layer in numbering.layers.get(value.name or "", ()):
                there = numbering.present(layer)
                leaving |= there
                if made is None:
                    result = self._zero_or_unknown(value.name or "", layer, entering)
                else:
                    result = self._placed(made, layer, there, value)
                numbering.keep(value.name or "", layer, result)
        numbering.mixed |= entering & ~leaving if made is not None else entering

    def values(self, slot: int) -> Values:
        """What the units hold at an input slot."""
        value = self.node.inputs[slot]
        assert value is not None
        return self.numbering.values(value.name or "", self.carried[slot])

    def aligned(self) -> bool:
        """Whether all inputs that carry the group lay it out as the output does."""
        shown = [self.numbering.layers.get(self.node.outputs[0].name or "", [])]
        layers = [*self.carried.values(), *(layer for each in shown for layer in each)]
        return all(np.array_equal(layers[0].units, other.units) for other in layers[1:])

    def single(self) -> bool:
        """Whether every unit has one place in all that enters and leaves."""
        name = self.node.outputs[0].name or ""
        layers = [*self.carried.values(), *self.numbering.layers.get(name, ())]
        flat = [places.units[places.units >= 0] for places in layers]
        return all(len(np.unique(places)) == len(places) for places in flat)

    def zero_to_zero(self) -> bool:
        """Whether the op is known to make zero of zeros."""
        tensors = self.numbering.coupling.tensors
        names = [self.node.outputs[0].name or ""]
        names += [value.name or "" for s in self.carried if (value := self.node.inputs[s])]
        return all(tensors[name].zero for name in names)

    def common(self, slot: int) -> Values:
        """What an input that does not carry the group adds: the same to every unit."""
        size, constant = self.numbering.group.size, self.constant(slot)
        if constant is not None and constant.size == 1:
            factor = np.full(size, float(constant.reshape(())))
            return Values(np.where(factor == 0, ZERO, ONE), factor)
        number = self.numbering.fresh(1)
        if constant is not None:
            self.numbering.fixed.update(number.tolist())
        return Values(np.repeat(number, size), np.ones(size))

    def classify(
        self, keys: Sequence[NDArray[np.int64]], rows: NDArray[np.float64], *, scaled: bool
    ) -> Values:
        """New numbers for what is made of numbered values; see `Numbering.classify`."""
        stacked = np.stack(keys, axis=1)
        fixed = np.fromiter(self.numbering.fixed, np.int64)
        depends = self._depends | ~np.isin(stacked, [*fixed, ABSENT]).all(axis=1)
        return self.numbering.classify(stacked, rows, scaled=scaled, depends=depends)

    def renumbered(self, values: Values, *more: NDArray[np.int64]) -> Values:
        """New numbers, the same factors: zero stays zero.

        Args:
            values: numbers and factors.
            more: what else tells units apart; numbers or flags 0 and 1.
        """
        keys = [values.number, *more]
        blank = np.zeros((len(values.number), 1))
        number = self.classify(keys, blank, scaled=False).number
        number = np.where(values.number <= ZERO, values.number, number)
        return Values(number, np.where(number == ZERO, 0.0, values.factor))

    def _passing(self, name: str) -> list[Carried]:
        layers = self.numbering.layers.get(name, ())
        return [
            layer
            for layer in layers
            if not any((name, axis) in self._contracted for axis in layer.axes)
        ]

    def _constant(self, name: str) -> bool:
        labels = self.numbering.coupling.tensors.get(name)
        return name in self.numbering.coupling.facts.constants or bool(labels and labels.constant)

    def _zero_or_unknown(self, name: str, layer: Carried, entering: NDArray[np.bool_]) -> Values:
        unknown = self.numbering.unknown(layer)
        if not self.numbering.coupling.tensors[name].zero or not self.carried:
            return unknown
        there = np.zeros(len(entering), bool)
        for carried in self.carried.values():
            there |= self.numbering.present(carried)
        number = np.where(there & ~entering & (unknown.number > ZERO), ZERO, unknown.number)
        return Values(number, np.where(number == ZERO, 0.0, 1.0))

    def _placed(
        self, made: Values, layer: Carried, there: NDArray[np.bool_], value: ir.Value
    ) -> Values:
        """Tell units apart that lie in another pattern, or leave through another output."""
        number = np.where(there, made.number, ABSENT)
        lost = there & (made.number == ABSENT)
        number = np.where(lost, self.numbering.fresh(len(number)), number)
        patterns = [_pattern(each, len(number)) for each in (*self.carried.values(), layer)]
        moved = len(self.node.outputs) > 1 or any(pattern.any() for pattern in patterns)
        values = Values(number, np.where(lost, 1.0, made.factor))
        if not moved:
            return values
        which = np.full(len(number), list(self.node.outputs).index(value))
        blank = np.zeros((len(number), 1))
        keys = np.stack([number, which, *patterns], axis=1)
        depends = ~np.isin(number, np.fromiter(self.numbering.fixed, np.int64))
        apart = self.numbering.classify(keys, blank, scaled=False, depends=depends)
        return Values(np.where(number <= ZERO, number, apart.number), values.factor)


ABSENT, ZERO, ONE = -1, 0, 1
"""Numbers with a meaning: not there, zero everywhere, one everywhere."""

# Movement of data: what is one everywhere stays so.
_MOVEMENT = ["Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"]
_MOVEMENT += ["Tile", "Split", "DepthToSpace", "SpaceToDepth"]
# The order of a unit's own places may change, so it must have one only.
_PICKING = ["Slice", "Gather"]
_LINEAR = ["Neg", "Dropout", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"]
_POSITIVE = ["Relu", "LeakyRelu", "Abs", "MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool"]
_POSITIVE += ["ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"]
_ANYTHING = ["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos"]
_ANYTHING += ["Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"]
_ANYTHING += ["InstanceNormalization", "Log", "Max", "Min", "Mish", "Pow", "Reciprocal", "Round"]
_ANYTHING += ["Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "LogSoftmax"]
_ANYTHING += ["Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where"]
_FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})


@dataclass(frozen=True)
class Values:
    """What the units of a group hold at a tensor: factor_u * R[number_u].

    Attributes:
        number: int [size].
        factor: float [size]; 0 where the number is `ZERO`.
    """

    number: NDArray[np.int64]
    factor: NDArray[np.float64]


def _linear(view: NumberedNode) -> Values | None:
    return view.renumbered(view.values(0)) if view.carried.keys() == {0} else None


def _movement(view: NumberedNode) -> Values | None:
    return view.values(0) if view.carried.keys() == {0} else None


def _picking(view: NumberedNode) -> Values | None:
    return _linear(view) if view.single() else None


def _cast(view: NumberedNode) -> Values | None:
    to = ir.DataType(view.attribute("to", ir.DataType.FLOAT)).name
    return _movement(view) if to in _FLOATS else None


def _positive(view: NumberedNode) -> Values | None:
    if view.carried.keys() != {0}:
        return None
    values = view.values(0)
    positive = Values(values.number, np.abs(values.factor))
    return view.renumbered(positive, (values.factor < 0).astype(np.int64))


def _prelu(view: NumberedNode) -> Values | None:
    if 0 not in view.carried or not view.aligned():
        return None
    values = view.values(0)
    keys, rows = [values.number, (values.factor < 0).astype(np.int64)], np.zeros(len(values.number))
    if 1 in view.carried:
        slope = view.values(1)
        keys, rows = [*keys, slope.number], slope.factor
    classes = view.classify(keys, rows[:, np.newaxis], scaled=False)
    number = np.where(values.number <= 0, values.number, classes.number)
    return Values(number, np.abs(values.factor))


def _anything(view: NumberedNode) -> Values | None:
    if not view.carried or not view.aligned():
        return None
    carried = [view.values(slot) for slot in view.carried]
    rows = np.stack([values.factor for values in carried], axis=1)
    # each input by itself: a row is compared relative to its norm
    keys = [
        view.classify([values.number], values.factor[:, np.newaxis], scaled=False)
        for values in carried
    ]
    made = view.classify([values.number for values in keys], np.zeros_like(rows), scaled=False)
    number = made.number
    if view.zero_to_zero():
        number = np.where((rows == 0).all(axis=1), 0, number)
    return Values(number, np.where(number == 0, 0.0, 1.0))


def _product(view: NumberedNode, left: Values, right: Values, *, divide: bool = False) -> Values:
    zero = (left.number == 0) | (right.number == 0)
    with np.errstate(all="ignore"):
        factor = left.factor / right.factor if divide else left.factor * right.factor
    number = view.renumbered(Values(left.number, factor), right.number).number
    lost = ~np.isfinite(factor) | ((factor == 0) & ~zero)
    number = np.where(lost, view.numbering.fresh(len(number)), np.where(zero, 0, number))
    absent = (left.number < 0) | (right.number < 0)
    return Values(np.where(absent, -1, number), np.where(lost, 1.0, np.where(zero, 0, factor)))


def _mul(view: NumberedNode) -> Values | None:
    if not view.carried or not view.aligned():
        return None
    carried = [view.values(slot) for slot in view.carried]
    return (
        view.renumbered(carried[0]) if len(carried) == 1 else _product(view, carried[0], carried[1])
    )


def _div(view: NumberedNode) -> Values | None:
    if view.carried.keys() == {1}:
        return _anything(view)
    if not view.aligned():
        return None
    carried = [view.values(slot) for slot in view.carried]
    if len(carried) == 1:
        return view.renumbered(carried[0])
    return None if (carried[1].number == 0).any() else _product(view, *carried, divide=True)


def _together(view: NumberedNode, terms: Sequence[Values]) -> Values:
    """Terms side by side; a unit that a term does not have has zero there."""
    numbers = [np.maximum(term.number, ZERO) for term in terms]
    rows = np.stack([np.where(term.number > ZERO, term.factor, 0.0) for term in terms], axis=1)
    classes = view.classify(numbers, rows, scaled=True)
    absent = np.all([term.number == ABSENT for term in terms], axis=0)
    number = np.where(classes.factor == 0, ZERO, classes.number)
    return Values(np.where(absent, ABSENT, number), classes.factor)


def _sum(view: NumberedNode, terms: Sequence[Values]) -> Values:
    made = _together(view, terms)
    plain = np.all([term.number <= ONE for term in terms], axis=0) & (made.number > ZERO)
    total = np.sum([np.where(term.number == ONE, term.factor, 0.0) for term in terms], axis=0)
    number = np.where(plain, np.where(total == 0, ZERO, ONE), made.number)
    return Values(number, np.where(plain, total, made.factor))


def _signed(sign: float) -> Callable[[NumberedNode], Values | None]:
    def rule(view: NumberedNode) -> Values | None:
        if not view.carried or not view.aligned():
            return None
        terms = []
        for slot in range(len(view.node.inputs)):
            term = view.values(slot) if slot in view.carried else view.common(slot)
            terms.append(Values(term.number, term.factor * (sign if slot else 1.0)))
        return _sum(view, terms)

    return rule


def _concat(view: NumberedNode) -> Values | None:
    return _together(view, [view.values(slot) for slot in view.carried]) if view.carried else None


def _pad(view: NumberedNode) -> Values | None:
    """Zeros around: what is only padding is zero."""
    if view.carried.keys() != {0} or view.attribute("mode", "constant") != "constant":
        return None
    value = view.constant(2)
    if (view.has(2) and (value is None or np.any(value))) or view.attribute("value", 0.0):
        return None
    made = view.renumbered(view.values(0))
    number = np.maximum(made.number, 0)
    return Values(number, np.where(number == 0, 0.0, made.factor))


def _convolution(view: NumberedNode) -> Values | None:
    groups = int(view.attribute("group", 1))
    if 1 not in view.carried:
        return None
    made = view.values(1)
    if groups == 1:
        if 0 in view.carried:
            return None
        made = view.renumbered(made)
    elif 0 in view.carried:
        made = _product(view, view.values(0), made)
    elif view.node.op_type == "Conv" and view.carried[1].axes == (0,):
        made = view.renumbered(made, _row(view) // _rows_of(view, groups))
    else:
        return None
    return _biased(view, made)


def _row(view: NumberedNode) -> NDArray[np.int64]:
    """The first row of a grouped convolution's weight that is a unit's."""
    units = view.carried[1].units.ravel()
    mine = np.flatnonzero(units >= 0)[::-1]
    row = np.zeros(view.numbering.group.size, np.int64)
    row[units[mine]] = mine
    return row


def _rows_of(view: NumberedNode, groups: int) -> int:
    return int(view.carried[1].units.size) // groups


def _biased(view: NumberedNode, made: Values, scale: float = 1.0) -> Values | None:
    if not view.has(2):
        return made
    if 2 not in view.carried:
        return None
    bias = view.values(2)
    return _sum(view, [made, Values(bias.number, bias.factor * scale)])


def _gemm(view: NumberedNode) -> Values | None:
    factors = view.carried.keys() - {2}
    if len(factors) != 1:
        return None
    alpha, beta = float(view.attribute("alpha", 1.0)), float(view.attribute("beta", 1.0))
    made = view.renumbered(view.values(factors.pop()))
    return _biased(view, Values(made.number, made.factor * alpha), beta)


def _contraction(view: NumberedNode) -> Values | None:
    slots = list(view.carried)
    return view.renumbered(view.values(slots[0])) if len(slots) == 1 else None


def _batch_normalisation(view: NumberedNode) -> Values | None:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift."""
    if view.carried.keys() != {0, 1, 2, 3, 4} or view.attribute("training_mode", 0):
        return None
    scale, shift, mean, variance = (view.values(slot) for slot in (1, 2, 3, 4))
    known = [np.isin(each.number, (0, 1)).all() for each in (scale, shift, mean, variance)]
    if not all(known) or not view.aligned():
        return None
    values = view.values(0)
    gain = scale.factor / np.sqrt(variance.factor + float(view.attribute("epsilon", 1e-5)))
    offset = shift.factor - mean.factor * gain
    if not np.isfinite(gain).all():
        return None
    shifted = Values(np.where(offset == 0, 0, 1), offset)
    scaled = Values(np.where(gain == 0, 0, values.number), values.factor * gain)
    return _sum(view, [scaled, shifted])


NUMBERING: dict[str, Callable[[NumberedNode], Values | None]] = {
    **dict.fromkeys(_MOVEMENT, _movement),
    **dict.fromkeys(_PICKING, _picking),
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(_POSITIVE, _positive),
    **dict.fromkeys(_ANYTHING, _anything),
    "Cast": _cast,
    "PRelu": _prelu,
    "Mul": _mul,
    "Div": _div,
    "Add": _signed(1.0),
    "Sum": _signed(1.0),
    "Sub": _signed(-1.0),
    "Concat": _concat,
    "Pad": _pad,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _contraction,
    "Einsum": _contraction,
    "BatchNormalization": _batch_normalisation,
}

SAME = 1e-6
"""Largest distance of two rows taken for equal, relative to their norm: rounding of float32."""

_CHUNK = 1_000_000


def alike(
    keys: NDArray[np.int64], rows: NDArray[Any], *, scaled: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find rows that are the same.

    Args:
        keys: int [n, m]; rows with different keys differ.
        rows: [n, k].
        scaled: rows that differ by a factor, be it negative, are the same.

    Returns:
        For each row the index of one that stands for all like it, int [n], and its factor,
        float [n]: row = factor * (a row all of them share); ones when not `scaled`.
    """
    norms, marks = _marks(rows)
    factors = np.ones(len(rows))
    if scaled:
        factors = np.where(marks < 0, -1.0, 1.0) * norms
        marks = np.abs(marks) / np.where(norms > 0, norms, 1.0)
    limits = np.full(len(rows), SAME) if scaled else SAME * norms
    first = np.arange(len(rows))
    blank = np.flatnonzero(norms == 0)
    if len(blank):
        _, representatives, which = np.unique(
            keys[blank], axis=0, return_index=True, return_inverse=True
        )
        first[blank] = blank[representatives[which.reshape(-1)]]
    order = np.lexsort((marks, *keys.T))
    order = order[norms[order] > 0]
    near = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    near &= np.diff(marks[order]) <= limits[order[1:]]
    heads: list[int] = []
    for position in np.flatnonzero(near).tolist():
        before, row = order[position : position + 2].tolist()
        if not position or not near[position - 1]:
            heads = [before]
        heads = [other for other in heads if marks[row] - marks[other] <= limits[row]]
        mine = rows[row].astype(np.float64) / factors[row]
        for other in heads:
            apart = mine - rows[other].astype(np.float64) / factors[other]
            if np.sqrt(apart @ apart) <= limits[row]:
                first[row] = other
                break
        else:
            heads.append(row)
    return first, factors


def _marks(rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Norm of each row, and its product with a random vector of norm one."""
    count, length = rows.shape
    direction = np.random.default_rng(0).standard_normal(length)
    direction /= max(float(np.linalg.norm(direction)), 1e-30)
    norms, marks = np.zeros(count), np.zeros(count)
    step = max(_CHUNK // max(length, 1), 1)
    for start in range(0, count, step):
        part = rows[start : start + step].astype(np.float64)
        norms[start : start + step] = np.sqrt(np.einsum("ij,ij->i", part, part))
        marks[start : start + step] = part @ direction
    return norms, marks


NOTHING = 1e-15
"""Weights of one unit that are smaller than this share of another's count as zero."""

_ONLY_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Carried:
    """A layer of a tensor that carries a group.

    Attributes:
        axes: its axes, in nesting order.
        units: unit index at each position, -1 for none.
        foreign: composites of the group lie on it, so not all of it is said by units.
    """

    axes: tuple[int, ...]
    units: NDArray[np.int64]
    foreign: bool


class Carriers:
    """Which tensors, and so which nodes, carry which group."""

    def __init__(self, coupling: Coupling, groups: Sequence[Group], graph: ir.Graph) -> None:
        count = coupling.relations.count
        owner, unit = np.full(count, -1), np.full(count, -1)
        for number, group in enumerate(groups):
            owner[group.all_units] = number
            unit[group.units] = np.arange(group.size)
        self.layers: list[dict[str, list[Carried]]] = [{} for _ in groups]
        for name, labels in coupling.tensors.items():
            for label in labels.axis_labels:
                classes = coupling.unit_of[label.atoms]
                for number in np.unique(owner[classes]).tolist():
                    mine = owner[classes] == number
                    if number >= 0 and mine.any():
                        units = np.where(mine, unit[classes], -1)
                        carried = Carried(label.axes, units, bool((mine & (units < 0)).any()))
                        self.layers[number].setdefault(name, []).append(carried)
        carriers: list[dict[int, ir.Node]] = [{} for _ in groups]
        touching: dict[str, list[int]] = defaultdict(list)
        for number, tensors in enumerate(self.layers):
            for name in tensors:
                touching[name].append(number)
        for node in coupling.nodes(graph):
            for value in (*node.inputs, *node.outputs):
                for number in touching.get(value.name or "", ()) if value is not None else ():
                    carriers[number][id(node)] = node
        self.nodes = [list(nodes.values()) for nodes in carriers]


class Numbering:
    """Numbers the units of one group at every tensor that carries it.

    Args:
        group: the group.
        layers: where it is carried, by tensor.
        nodes: the nodes that touch it, in graph order.
        coupling: labels and consumers.
        constants: values of the constants as they are now.
        consumers: the consumers of each node, by its id.

    Attributes:
        fixed: numbers of values that do not depend on the model's input.
        mixed: bool [size], units that some node uses in a way no reading describes.
    """

    def __init__(
        self,
        group: Group,
        layers: Mapping[str, list[Carried]],
        nodes: Sequence[ir.Node],
        coupling: Coupling,
        constants: ConstantValues,
        consumers: Mapping[str, Sequence[Consumer]],
    ) -> None:
        self.group = group
        self.layers = layers
        self.coupling = coupling
        self.constants = constants
        self.fixed = {ZERO, ONE}
        self.mixed = np.zeros(group.size, bool)
        self._next = ONE + 1
        self._values: dict[tuple[str, tuple[int, ...]], Values] = {}
        for node in nodes:
            if node.op_type in _ONLY_SIZES or node.outputs[0].name in coupling.facts.constants:
                continue
            NumberedNode(self, node, consumers.get(node_id(node), ())).visit()

    def values(self, tensor: str, layer: Carried) -> Values:
        """What the units hold at a layer of a tensor."""
        key = tensor, layer.axes
        if key not in self._values:
            known = tensor in self.coupling.facts.constants
            self._values[key] = self._slices(tensor, layer) if known else self.unknown(layer)
        return self._values[key]

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Value of a constant of the graph as it was traced; None for any other tensor."""
        constant = self.coupling.facts.constants.get(tensor)
        return None if constant is None else constant.numpy()

    def at(self, tensor: str, axes: tuple[int, ...]) -> Values:
        """What the units hold at the layer of a tensor with these axes."""
        return self.values(
            tensor, next(layer for layer in self.layers[tensor] if layer.axes == axes)
        )

    def keep(self, tensor: str, layer: Carried, values: Values) -> None:
        """Note what a node has put into a tensor."""
        self._values[tensor, layer.axes] = values

    def unknown(self, layer: Carried) -> Values:
        """Every unit that is there holds something of its own."""
        number = np.where(self.present(layer), self.fresh(self.group.size), ABSENT)
        return Values(number, np.ones(self.group.size))

    def fresh(self, count: int) -> NDArray[np.int64]:
        """Numbers that nothing has yet."""
        self._next += count
        return np.arange(self._next - count, self._next)

    def present(self, layer: Carried) -> NDArray[np.bool_]:
        """Which units lie on a layer."""
        there = np.zeros(self.group.size, bool)
        there[layer.units[layer.units >= 0]] = True
        return there

    def classify(
        self, keys: NDArray[np.int64], rows: NDArray[Any], *, scaled: bool, depends: Any = False
    ) -> Values:
        """Give units with the same keys and rows that are alike one new number.

        Args:
            keys: int [size, m].
            rows: [size, k].
            scaled: up to a factor, which may be negative.
            depends: bool, or bool [size]: whether a unit's value depends on the model's input.
        """
        first, factors = alike(keys, rows, scaled=scaled)
        number = self.fresh(len(first))[first]
        fixed = np.broadcast_to(np.logical_not(depends), number.shape)
        self.fixed.update(number[fixed].tolist())
        return Values(number, factors)

    def _slices(self, name: str, layer: Carried) -> Values:
        array = self.constants[name]
        if array.dtype.kind in "iubOSU":
            return self.unknown(layer)
        flat = np.moveaxis(array, layer.axes, range(len(layer.axes)))
        flat = flat.reshape(layer.units.size, -1)
        number = np.full(self.group.size, ABSENT)
        factor = np.ones(self.group.size)
        for units, where in unit_positions(layer.units):
            rows = flat[where].reshape(len(units), -1)
            if rows.shape[1] == 1:
                factor[units] = rows[:, 0]
                number[units] = ONE
            else:
                kind = np.full((len(units), 1), where.shape[1])
                classes = self.classify(kind, rows, scaled=True)
                number[units], factor[units] = classes.number, classes.factor
        # weight decay leaves next to nothing of what is never used, but rarely zero
        largest = np.abs(factor[number > ONE]).max(initial=0.0)
        factor[(number > ONE) & (np.abs(factor) <= NOTHING * largest)] = 0
        number[(factor == 0) & (number != ABSENT)] = ZERO
        return Values(number, factor)


def _pattern(layer: Carried, size: int) -> NDArray[np.int64]:
    """Number of the pattern in which each unit lies on a layer, counted from its first place."""
    result = np.zeros(size, np.int64)
    taken = 0
    for units, where in unit_positions(layer.units):
        if where.shape[1] > 1:
            offsets = where - where[:, :1]
            _, which = np.unique(offsets, axis=0, return_inverse=True)
            result[units] = taken + 1 + which.reshape(-1)
            taken = int(result.max())
    return result
