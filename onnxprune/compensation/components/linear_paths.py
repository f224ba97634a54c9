"""Sets of units between whose producers and readers all is linear and acts on each of them alike.

Values of heads on their way through the attention average to the output projection, queries and
keys on their way to their product, a convolution that follows another without an activation: what
a matrix T does to the units where they are made, its inverse undoes where they are read.

No pattern is looked for. Units that share all their rows form a set; every node at which one of
them appears has to be of a kind known to be linear and alike, with the whole set at its place.

Where two activations are multiplied (queries and keys), what makes one operand is multiplied by T,
what makes the other by its inverse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.components.unit_positions import Places, copies_of, places_of
from onnxprune.compensation.regression.linear_layers import (
    WEIGHT_MOVEMENTS,
    LinearLayer,
    letters_of,
    replaceable_layers,
)
from onnxprune.coupling.groups import Group
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import node_id
from onnxprune.surgery.linear import LINEAR_OPS


@dataclass(frozen=True, eq=False)
class LinearSet:
    """Units that a matrix may be applied to where its inverse is applied as well.

    Attributes:
        group: name of their group.
        units: their numbers in it, ascending.
        factors: constants to be multiplied, with T or with its inverse.
        readers: layers that read the set; none where there are products.
        products: products of two activations that both carry the set.
    """

    group: str
    units: tuple[int, ...]
    factors: tuple[Factor, ...]
    readers: tuple[Regressor, ...]
    products: tuple[Product, ...]


@dataclass(frozen=True)
class LeftAlone:
    """A set that something else than a linear map is done to.

    Attributes:
        group: name of its group.
        units: its units.
        node: where.
        reason: what it is.
    """

    group: str
    units: tuple[int, ...]
    node: str
    reason: str


def linear_sets(
    model: ir.Model, coupling: Coupling, groups: Sequence[Group], largest: int = 2048
) -> tuple[list[LinearSet], list[LeftAlone]]:
    """Find the sets of some groups.

    Args:
        model: the model.
        coupling: its labels.
        groups: groups to look at.
        largest: units above which a set is left alone.

    Returns:
        the sets, and those sets of two or more units that are none.
    """
    layers = {id(layer.node): layer for layer in replaceable_layers(model, coupling)}
    summed: dict[tuple[str, str], set[int]] = defaultdict(set)
    for consumer in coupling.consumers:
        if consumer.weight is not None:
            summed[consumer.node, consumer.weight].add(consumer.weight_axis)
    nodes = _nodes_by_name(model)
    sets: list[LinearSet] = []
    left: list[LeftAlone] = []
    for group, carriers in zip(groups, _carriers(coupling, groups), strict=True):
        for units in _sets(group.size, carriers):
            if len(units) < 2:
                continue
            numbers = tuple(units.tolist())
            try:
                if len(units) > largest:
                    raise Unsuitable("", f"more than {largest} units")
                walk = SetWalk(model, coupling, layers, summed, carriers, units)
                walk.along(_touched(walk.names, nodes))
                sets.append(LinearSet(group.name, numbers, *walk.result()))
            except Unsuitable as reason:
                left.append(LeftAlone(group.name, numbers, reason.node, str(reason)))
    return sets, left


def _carriers(coupling: Coupling, groups: Sequence[Group]) -> list[dict[str, list[UnitLabel]]]:
    """Labels of each group by tensor."""
    count = coupling.relations.count
    owner, unit = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    for number, group in enumerate(groups):
        owner[group.units], unit[group.units] = number, np.arange(group.size)
    carriers: list[dict[str, list[UnitLabel]]] = [defaultdict(list) for _ in groups]
    for name, labels in coupling.tensors.items():
        for label in labels.axis_labels:
            ids = coupling.unit_of[label.atoms]
            for number in np.unique(owner[ids]).tolist():
                if number >= 0:
                    units = np.where(owner[ids] == number, unit[ids], -1)
                    carriers[number][name].append(UnitLabel(label.axes, units, label.atoms))
    return carriers


def _sets(size: int, carriers: Mapping[str, Sequence[UnitLabel]]) -> Iterator[NDArray[np.int64]]:
    """Split a group into units that are together in every row of every joint label."""
    rng = np.random.default_rng(0)
    signature = np.zeros(size, np.uint64)
    for labels in carriers.values():
        for label in labels:
            rows = label.units.reshape(-1, label.units.shape[-1])
            marks = rng.integers(0, 2**63, len(rows), dtype=np.uint64)
            row, column = np.nonzero(rows >= 0)
            np.add.at(signature, rows[row, column], marks[row])
    for mark in dict.fromkeys(signature.tolist()):
        yield np.flatnonzero(signature == np.uint64(mark))


def _nodes_by_name(model: ir.Model) -> dict[str, list[tuple[int, ir.Node]]]:
    """Nodes of the main graph that read or make a tensor, with their places."""
    nodes: dict[str, list[tuple[int, ir.Node]]] = defaultdict(list)
    for place, node in enumerate(model.graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name:
                nodes[value.name].append((place, node))
    return nodes


def _touched(names: Sequence[str], nodes: dict[str, list[tuple[int, ir.Node]]]) -> list[ir.Node]:
    """Nodes at some tensors, in graph order."""
    ordered = {place: node for name in names for place, node in nodes.get(name, ())}
    return [ordered[place] for place in sorted(ordered)]


class Sides:
    """Atoms that are on the same side as others, or on the opposite one."""

    def __init__(self) -> None:
        self._links: dict[int, list[tuple[int, bool]]] = defaultdict(list)

    def link(self, atom: int, other: int, *, opposite: bool = False) -> None:
        """Say how two atoms stand to each other."""
        self._links[atom].append((other, opposite))
        self._links[other].append((atom, opposite))

    def from_start(self, start: int) -> dict[int, bool]:
        """Say of all atoms linked with one whether they are on the opposite side.

        Raises:
            ValueError: when one atom would be on both sides.
        """
        side, waiting = {start: False}, [start]
        while waiting:
            atom = waiting.pop()
            for other, opposite in self._links[atom]:
                wanted = side[atom] != opposite
                if other not in side:
                    side[other] = wanted
                    waiting.append(other)
                elif side[other] != wanted:
                    raise ValueError("on both sides")
        return side


_SUMS = frozenset({"Add", "Sub", "Sum"})
_SCALINGS = frozenset({"Mul", "Div"})
# Labels follow the data exactly through these.
_MOVES = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"}
    | {"Split", "Slice", "Gather", "Concat", "Expand", "Tile", "Neg"}
)
# The same weighted average for each unit.
_AVERAGES = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum"})
_MEASURES = frozenset({"Shape", "Size"})


@dataclass(frozen=True, eq=False)
class UnitLabel:
    """Units of a group on some axes of a tensor.

    Attributes:
        axes: the axes, in nesting order.
        units: unit at each place, -1 where there is none.
        atoms: label at each place.
    """

    axes: tuple[int, ...]
    units: NDArray[np.int64]
    atoms: NDArray[np.int32]


class Unsuitable(Exception):
    """Something else than a linear map that is alike for all units is done to a set.

    Attributes:
        node: where.
    """

    def __init__(self, node: str, text: str) -> None:
        super().__init__(text)
        self.node = node


@dataclass(frozen=True, eq=False)
class Factor:
    """A constant whose entries are to be multiplied.

    Attributes:
        tensor: its name.
        places: of the units on it.
        inverse: multiply with the inverse of T, transposed, instead of with T.
    """

    tensor: str
    places: Places
    inverse: bool


@dataclass(frozen=True, eq=False)
class Regressor:
    """A layer that reads the set.

    Attributes:
        layer: the layer.
        index: unknown of each unit in each copy of the set: [copies, units].
    """

    layer: LinearLayer
    index: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Product:
    """A product of two activations that both carry the set.

    Attributes:
        node: the product.
        names: its operands, that on T's side first.
        places: of the units on both.
    """

    node: ir.Node
    names: tuple[str, str]
    places: tuple[Places, Places]


class SetWalk:
    """Looks at each node that one set appears at.

    Args:
        model: the model.
        coupling: its labels.
        layers: layers whose weight may be replaced, by id of the node.
        summed: contracted axes of weights, by node and weight.
        carriers: labels of the group, by tensor.
        units: those of the set.

    Attributes:
        names: tensors that carry the set.

    Raises:
        Unsuitable: when a tensor holds a part of the set.
    """

    def __init__(
        self,
        model: ir.Model,
        coupling: Coupling,
        layers: Mapping[int, LinearLayer],
        summed: Mapping[tuple[str, str], set[int]],
        carriers: Mapping[str, Sequence[UnitLabel]],
        units: NDArray[np.int64],
    ) -> None:
        self._graph = model.graph
        self._tensors, self._constants = coupling.tensors, coupling.facts.constants
        self._layers, self._summed = layers, summed
        self._size = len(units)
        self._all = self._all_places(carriers, units)
        self._explained: set[str] = set()
        self._sides = Sides()
        self._factors: list[Factor] = []
        self._readers: list[Regressor] = []
        self._products: list[Product] = []

    @property
    def names(self) -> list[str]:
        """Tensors that carry the set."""
        return list(self._all)

    def along(self, nodes: Iterable[ir.Node]) -> None:
        """Look at all nodes that read or make these tensors.

        Raises:
            Unsuitable: when one of them is not alike for all units.
        """
        for node in nodes:
            self._explained |= {value.name or "" for value in node.outputs}
            if any(self._constant(value.name or "") for value in node.outputs):
                continue
            try:
                self._look_at(node)
            except Unsuitable as reason:
                raise Unsuitable(node_id(node), str(reason)) from None

    def result(self) -> tuple[tuple[Factor, ...], tuple[Regressor, ...], tuple[Product, ...]]:
        """What to multiply, and what reads the set.

        Raises:
            Unsuitable: when not all is known of it, or it is not read the same way everywhere.
        """
        unexplained = [name for name in self._all if name not in self._explained]
        if unexplained:
            raise Unsuitable(unexplained[0], "used in a way that is not understood")
        if bool(self._readers) == bool(self._products):
            raise Unsuitable("", "not read by layers alone, nor by products alone")
        if not self._products:
            return tuple(self._factors), tuple(self._readers), ()
        try:
            side = self._sides.from_start(int(self._products[0].places[0].keys[0]))
            factors = tuple(part for factor in self._factors for part in _by_side(factor, side))
            products = tuple(
                Product(product.node, product.names[::-1], product.places[::-1])
                if side[int(product.places[0].keys[0])]
                else product
                for product in self._products
            )
        except (KeyError, ValueError) as error:
            text = "the operands of a product cannot be told apart"
            raise Unsuitable("", text) from error
        return factors, (), products

    def _all_places(
        self, carriers: Mapping[str, Sequence[UnitLabel]], units: NDArray[np.int64]
    ) -> dict[str, list[Places]]:
        most = max(int(label.units.max()) for labels in carriers.values() for label in labels)
        local = np.full(most + 2, -1, np.int64)
        local[units] = np.arange(self._size)
        places_by_name: dict[str, list[Places]] = {}
        for name, labels in carriers.items():
            for label in labels:
                mine = local[label.units]
                if (mine >= 0).any():
                    places = places_of(label.axes, mine, label.atoms, self._size)
                    if places is None:
                        raise Unsuitable(name, "a tensor holds only some of the units in a row")
                    places_by_name.setdefault(name, []).append(places)
        return places_by_name

    def _look_at(self, node: ir.Node) -> None:
        kind = "" if node.domain else node.op_type
        for value in node.inputs:
            if value is not None and value.name in self._all and self._seen_inside(value):
                raise Unsuitable("", "a body reads it")
        if kind in _MEASURES:
            return
        if kind in LINEAR_OPS:
            layer = self._layers.get(id(node))
            if layer is not None and (layer.weight in self._all):
                self._look_at_layer(node, layer)
            else:
                self._look_at_product(node)
        elif kind in _SUMS or kind in _SCALINGS:
            self._look_at_elements(node)
        elif kind in _MOVES or kind in _AVERAGES:
            self._look_at_movement(node, kind)
        else:
            raise Unsuitable("", f"{node.op_type} does not treat all units alike")

    def _look_at_layer(self, node: ir.Node, layer: LinearLayer) -> None:
        """Making the set, reading it, or both (a residual stream of linear layers)."""
        output = node.outputs[0].name or ""
        groups = node.attributes.get("group")
        if groups is not None and groups.as_int() != 1:
            raise Unsuitable("", "a grouped convolution")
        contracted = self._summed.get((node_id(node), layer.weight), set())
        made: list[Places] = []
        read: list[Places] = []
        for places in self._all[layer.weight]:
            (read if places.axes[-1] in contracted else made).append(places)
        if (layer.data in self._all) != (len(read) == 1) or len(read) > 1:
            raise Unsuitable("", "the weight is read in an unknown way")
        if (output in self._all) != (len(made) == 1) or len(made) > 1:
            raise Unsuitable("", "the output is made in an unknown way")
        if read:
            data = self._places(layer.data)
            label = AxisLabel(data.axes, data.units.astype(np.int32))
            spread = layer.unknowns(label, data.units)
            if spread is None or len(spread) != 1:
                raise Unsuitable("", "rows of the input carry different units")
            self._readers.append(Regressor(layer, copies_of(spread[0], self._size)))
            self._multiply(node, layer.slot, read[0], inverse=True)
        if made:
            self._multiply(node, layer.slot, made[0])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and made:
            places, goal = self._places(bias.name or ""), self._places(output)
            shift = len(self._tensors[output].shape) - len(self._tensors[bias.name or ""].shape)
            self._join(places, goal, 1 if node.op_type != "Gemm" else shift)
            self._multiply(node, 2, places)
        elif bias is not None and bias.name in self._all:
            raise Unsuitable("", "a bias of something else")

    def _look_at_product(self, node: ir.Node) -> None:
        """MatMul and the like with units that are contracted on both sides, or on none."""
        names = [value.name or "" if value is not None else "" for value in node.inputs]
        output = node.outputs[0].name or ""
        if len(names) != 2 or node.op_type in ("Conv", "ConvTranspose"):
            raise Unsuitable("", f"{node.op_type} with a weight that cannot be replaced")
        try:
            terms = letters_of(node, [len(self._tensors[name].shape) for name in names])
        except (ValueError, KeyError) as error:
            raise Unsuitable("", "a product that is not understood") from error
        carrying = [slot for slot, name in enumerate(names) if name in self._all]
        if any(self._constant(names[slot]) for slot in carrying):
            raise Unsuitable("", "a weight that cannot be replaced")
        if not carrying:
            raise Unsuitable("", "made in an unknown way")
        places = [self._places(names[slot]) for slot in carrying]
        letters = [terms[s][each.axes[-1]] for s, each in zip(carrying, places, strict=True)]
        if len(carrying) == 2:
            if letters[0] != letters[1] or letters[0] in terms[2] or output in self._all:
                raise Unsuitable("", "both operands carry the units along different axes")
            first, second = places
            for each in places:
                for key in each.keys.tolist():
                    self._sides.link(int(first.keys[0]), key, opposite=each is second)
            self._products.append(Product(node, (names[0], names[1]), (first, second)))
            return
        letter, other = letters[0], terms[1 - carrying[0]]
        if letter in other or letter not in terms[2] or output not in self._all:
            raise Unsuitable("", "the units are multiplied with something that tells them apart")
        if self._places(output).axes[-1] != terms[2].index(letter):
            raise Unsuitable("", "the units come out elsewhere")

    def _look_at_elements(self, node: ir.Node) -> None:
        output = node.outputs[0].name or ""
        if output not in self._all:
            raise Unsuitable("", "made in an unknown way")
        goal, rank = self._places(output), len(self._tensors[output].shape)
        sums = node.op_type in _SUMS
        carrying = 0
        for slot, value in enumerate(node.inputs):
            name = value.name or "" if value is not None else ""
            if name not in self._tensors:
                raise Unsuitable("", f"the shape of {name} is unknown")
            shape = self._tensors[name].shape
            shift = rank - len(shape)
            if name not in self._all:
                axis = goal.axes[-1] - shift
                if sums:
                    raise Unsuitable("", "something is added that does not follow the units")
                if axis >= 0 and shape[axis] != 1:
                    raise Unsuitable("", "the units are scaled one by one")
                continue
            carrying += 1
            if not sums and (carrying > 1 or (node.op_type == "Div" and slot)):
                raise Unsuitable("", "the units are multiplied with each other")
            places = self._places(name)
            self._join(places, goal, shift)
            if self._constant(name):
                self._multiply(node, slot, places)
        if not carrying:
            raise Unsuitable("", "made in an unknown way")

    def _look_at_movement(self, node: ir.Node, kind: str) -> None:
        made = [value.name for value in node.outputs if value.name in self._all]
        read = [
            value.name for value in node.inputs if value is not None and value.name in self._all
        ]
        if not read or (kind in _AVERAGES and not made):
            raise Unsuitable("", "the units are summed up" if read else "made in an unknown way")
        if kind == "Cast" and not ir.DataType(node.attributes["to"].as_int()).is_floating_point():
            raise Unsuitable("", "rounded to integers")
        if kind == "Concat" and made:
            output = node.outputs[0].name or ""
            axis = node.attributes["axis"].as_int() % len(self._tensors[output].shape)
            if axis not in self._places(output).axes and len(read) < len(node.inputs):
                raise Unsuitable("", "something is put next to it that does not follow the units")
        for name in filter(None, (*read, *made)):
            if self._constant(name):
                raise Unsuitable("", "a constant that is no bias")
            self._places(name)

    def _places(self, name: str) -> Places:
        every = self._all.get(name, ())
        if len(every) != 1:
            text = "several axes carry the units" if every else "does not follow the units"
            raise Unsuitable("", f"{name}: {text}")
        return every[0]

    def _constant(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name].constant

    def _seen_inside(self, value: ir.Value) -> bool:
        return any(use.node.graph is not self._graph for use in value.uses())

    def _join(self, places: Places, goal: Places, shift: int) -> None:
        """Note which copies are added to which."""
        pairs = places.partners(goal, shift)
        if pairs is None:
            raise Unsuitable("", "the same value for several units")
        for first, second in pairs.tolist():
            self._sides.link(first, second)

    def _multiply(self, node: ir.Node, slot: int, places: Places, *, inverse: bool = False) -> None:
        """Note the constant behind an input for multiplication."""
        value = node.inputs[slot]
        name = value.name or "" if value is not None else ""
        shared = False
        while value is not None and name not in self._constants:
            producer = value.producer()
            shared |= len(value.uses()) > 1 or value.is_graph_output()
            if producer is None or producer.domain or producer.op_type not in WEIGHT_MOVEMENTS:
                raise Unsuitable("", "a constant that is worked out")
            self._explained.add(name)
            value = producer.inputs[0]
            name = value.name or "" if value is not None else ""
            if len(self._all.get(name, ())) != 1:
                raise Unsuitable("", "a constant that is worked out")
            places = self._all[name][0]
        if value is None or not self._constants[name].dtype.is_floating_point():
            raise Unsuitable("", "a constant of integers")
        self._explained.add(name)
        if shared or len(value.uses()) > 1 or value.is_graph_output():
            if places.gathered(self._constants[name].numpy()).any():
                raise Unsuitable("", f"{name} is used elsewhere too")
            return
        self._factors.append(Factor(name, places, inverse))


def _by_side(factor: Factor, side: Mapping[int, bool]) -> Iterator[Factor]:
    """Divide what is made on both sides of a product by one weight."""
    inverse = np.array([side[key] for key in factor.places.keys.tolist()])
    for value in (False, True):
        if (inverse == value).any():
            yield Factor(factor.tensor, factor.places.only(inverse == value), value)
