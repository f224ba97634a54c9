"""Value numbers: which units of a group hold the same, up to a factor, whatever the input.

At every tensor that carries the group, the slice of unit u is factor_u * R[number_u]. Constants
are numbered by their slices; from there one walk over the nodes that touch the group numbers every
activation: two units have the same number where the same op (`numbering_rules.py`) is applied to
slices of the same numbers. What no rule understands gives every unit a number of its own. So equal
numbers are a proof, and no input is needed to find them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.coupling.places import places
from onnxprune.coupling.step import node_id
from onnxprune.surgery.numbering_rules import ABSENT, NUMBERING, ONE, ZERO, Values
from onnxprune.surgery.similarity import alike

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.coupling.groups import Group
    from onnxprune.coupling.step import Consumer
    from onnxprune.coupling.trace import Coupling
    from onnxprune.model.constants import ConstantValues

__all__ = ["NOTHING", "Carried", "Carriers", "NodeView", "Numbering"]

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
            owner[group.classes] = number
            unit[group.units] = np.arange(group.size)
        self.layers: list[dict[str, list[Carried]]] = [{} for _ in groups]
        for name, labels in coupling.tensors.items():
            for layer in labels.layers:
                classes = coupling.classes[layer.atoms]
                for number in np.unique(owner[classes]).tolist():
                    mine = owner[classes] == number
                    if number >= 0 and mine.any():
                        units = np.where(mine, unit[classes], -1)
                        carried = Carried(layer.axes, units, bool((mine & (units < 0)).any()))
                        self.layers[number].setdefault(name, []).append(carried)
        found: list[dict[int, ir.Node]] = [{} for _ in groups]
        touching: dict[str, list[int]] = defaultdict(list)
        for number, tensors in enumerate(self.layers):
            for name in tensors:
                touching[name].append(number)
        for node in graph:
            for value in (*node.inputs, *node.outputs):
                for number in touching.get(value.name or "", ()) if value is not None else ():
                    found[number][id(node)] = node
        self.nodes = [list(one.values()) for one in found]


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
            NodeView(self, node, consumers.get(node_id(node), ())).visit()

    def values(self, tensor: str, layer: Carried) -> Values:
        """What the units hold at a layer of a tensor."""
        key = tensor, layer.axes
        if key not in self._values:
            known = tensor in self.coupling.facts.constants
            self._values[key] = self._slices(tensor, layer) if known else self.unknown(layer)
        return self._values[key]

    def at(self, tensor: str, axes: tuple[int, ...]) -> Values:
        """What the units hold at the layer of a tensor with these axes."""
        return self.values(tensor, next(one for one in self.layers[tensor] if one.axes == axes))

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
        self,
        keys: NDArray[np.int64],
        rows: NDArray[Any],
        *,
        scaled: bool,
        depends: Any = False,
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
        for units, where in places(layer.units):
            rows = flat[where].reshape(len(units), -1)
            if rows.shape[1] == 1:
                factor[units] = rows[:, 0]
                number[units] = ONE
            else:
                kind = np.full((len(units), 1), where.shape[1])
                found = self.classify(kind, rows, scaled=True)
                number[units], factor[units] = found.number, found.factor
        # weight decay leaves next to nothing of what is never used, but rarely zero
        largest = np.abs(factor[number > ONE]).max(initial=0.0)
        factor[(number > ONE) & (np.abs(factor) <= NOTHING * largest)] = 0
        number[(factor == 0) & (number != ABSENT)] = ZERO
        return Values(number, factor)


class NodeView:
    """A node as the rules see it.

    Attributes:
        numbering: of the group.
        node: the node.
        carried: input slot -> the layer through which the group enters and passes on.
    """

    def __init__(self, numbering: Numbering, node: ir.Node, consumers: Sequence[Consumer]) -> None:
        self.numbering = numbering
        self.node = node
        self._contracted = {(one.tensor, one.axis) for one in consumers}
        self._contracted |= {(one.weight or "", one.weight_axis) for one in consumers}
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
        rule: Callable[[NodeView], Values | None] | None = None
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

    def has(self, slot: int) -> bool:
        """Whether an input is there."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def constant(self, slot: int) -> NDArray[Any] | None:
        """Value of an input that is a constant of the graph."""
        value = self.node.inputs[slot] if self.has(slot) else None
        tensor = self.numbering.coupling.facts.constants.get((value and value.name) or "")
        return None if tensor is None else tensor.numpy()

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or the default."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def aligned(self) -> bool:
        """Whether all inputs that carry the group lay it out as the output does."""
        shown = [self.numbering.layers.get(self.node.outputs[0].name or "", [])]
        layers = [*self.carried.values(), *(layer for one in shown for layer in one)]
        return all(np.array_equal(layers[0].units, other.units) for other in layers[1:])

    def single(self) -> bool:
        """Whether every unit has one place in all that enters and leaves."""
        name = self.node.outputs[0].name or ""
        layers = [*self.carried.values(), *self.numbering.layers.get(name, ())]
        flat = [one.units[one.units >= 0] for one in layers]
        return all(len(np.unique(one)) == len(one) for one in flat)

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
            one for one in layers if not any((name, axis) in self._contracted for axis in one.axes)
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
        patterns = [_pattern(one, len(number)) for one in (*self.carried.values(), layer)]
        moved = len(self.node.outputs) > 1 or any(one.any() for one in patterns)
        values = Values(number, np.where(lost, 1.0, made.factor))
        if not moved:
            return values
        which = np.full(len(number), list(self.node.outputs).index(value))
        blank = np.zeros((len(number), 1))
        keys = np.stack([number, which, *patterns], axis=1)
        depends = ~np.isin(number, np.fromiter(self.numbering.fixed, np.int64))
        apart = self.numbering.classify(keys, blank, scaled=False, depends=depends)
        return Values(np.where(number <= ZERO, number, apart.number), values.factor)


def _pattern(layer: Carried, size: int) -> NDArray[np.int64]:
    """Number of the pattern in which each unit lies on a layer, counted from its first place."""
    result = np.zeros(size, np.int64)
    taken = 0
    for units, where in places(layer.units):
        if where.shape[1] > 1:
            offsets = where - where[:, :1]
            _, which = np.unique(offsets, axis=0, return_inverse=True)
            result[units] = taken + 1 + which.reshape(-1)
            taken = int(result.max())
    return result
