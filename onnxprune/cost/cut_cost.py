"""What a model would cost under a cut, from shapes alone: no model is built."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.cost.figures import made_in_idle_bodies, seen_shapes
from onnxprune.cost.kinds import KINDS, Costs, NodeCounter, Units
from onnxprune.cost.memory import (
    Lifetimes,
    all_constants,
    is_parameter,
    observed_bytes,
    rest_bytes,
    tensor_bytes,
    tensors_of,
)
from onnxprune.coupling.cut_shapes import CutShapes
from onnxprune.coupling.groups import Group
from onnxprune.coupling.trace import Coupling
from onnxprune.model.node_view import ShapeOf
from onnxprune.model.tensors import extents

_PER_NODE = {kind.name: kind.per_node for kind in KINDS if kind.per_node is not None}


@dataclass(frozen=True)
class _Part:
    """What the costs of a part of the model are summed over.

    Attributes:
        constants: names of constants.
        activations: names of activations.
        nodes: kind -> nodes that have such a cost.
    """

    constants: Collection[str]
    activations: Collection[str]
    nodes: Mapping[str, Sequence[ir.Node]]


class CutCost:
    """Costs of a model at its traced size, under any cut; the kinds are those of `cost.kinds`.

    A tensor that a cut leaves ragged counts whole; such a cut cannot be built anyway. Constants in
    bodies that nobody could look into count unchanged, activations in them not at all; so do the
    nodes of bodies that no sample runs.

    Args:
        graph: the original's main graph.
        coupling: its labels.
        per_node: kind -> cost of one node, for kinds that are sums over the nodes of the main
            graph; each is a kind of its own, next to those of `cost.kinds`.
        whole: what fractions refer to; None for the cost of this model before any cut.

    Attributes:
        whole: the same.
    """

    def __init__(
        self,
        graph: ir.Graph,
        coupling: Coupling,
        per_node: Mapping[str, NodeCounter] | None = None,
        whole: Mapping[str, float] | None = None,
    ) -> None:
        self._shapes = CutShapes(coupling)
        self._seen = partial(seen_shapes, made_in_idle_bodies(graph, coupling))
        self._facts = coupling.facts
        self._graph = graph
        self._counters = {**_PER_NODE, **(per_node or {})}
        constants = self._facts.constants
        self._parameters = frozenset(n for n, tensor in constants.items() if is_parameter(tensor))
        shape_of = self._seen(self._facts.first.shapes.__getitem__)
        nodes = {
            kind: [node for node in graph if count(node, shape_of)]
            for kind, count in self._counters.items()
        }
        self._lifetimes = Lifetimes.of(graph)
        self._whole = _Part(constants, self._lifetimes.names, nodes)
        self._part_of = cache(self._find_part)
        self._tensors_of = cache(self._find_tensors)
        self._fixed = cache(self._count_fixed)
        self._rest = cache(partial(rest_bytes, graph))
        self._shares = cache(partial(self._peak_shares, ()))
        self.whole: Mapping[str, float] = self.after(()) if whole is None else whole

    def after(self, removed: Units) -> Costs:
        """Return the cost of every kind with the units `removed` removed."""
        shape_of = self._shapes.after(removed, everywhere=True)
        bytes_of = partial(observed_bytes, self._facts.first, shape_of=shape_of)
        constants = self._constants(self._whole, shape_of)

        def weights() -> float:
            return self._fixed()[1] + constants["weights"]

        def activations() -> float:
            return self._lifetimes.peak(bytes_of)

        return Costs(
            {
                "params": lambda: self._fixed()[0] + constants["params"],
                **self._nodes(self._whole, shape_of),
                "weights": weights,
                "size": lambda: self._rest() + weights(),
                "activations": activations,
                "memory": lambda: weights() + activations(),
            }
        )

    def touched(self, group: Group, removed: Units) -> Costs:
        """Cost of the nodes and tensors that a group touches, with units of any groups removed.

        The peak of the activations is shared out among them, see `cost.memory`: near the uncut
        model, or the cut that `near` was called with.
        """
        part = self._part_of(group)
        shape_of = self._shapes.after(removed)
        constants = self._constants(part, shape_of)

        def activations() -> float:
            shares, observed = self._shares(), self._facts.first
            near = [name for name in part.activations if name in shares]
            return sum(shares[name] * observed_bytes(observed, name, shape_of) for name in near)

        return Costs(
            {
                "params": lambda: constants["params"],
                **self._nodes(part, shape_of),
                "weights": lambda: constants["weights"],
                "size": lambda: constants["weights"],
                "activations": activations,
                "memory": lambda: constants["weights"] + activations(),
            }
        )

    def saved_by(self, group: Group, removed: Units) -> Costs:
        """What removing units of one group saves, counted over the nodes that group touches."""
        before, after = self.touched(group, ()), self.touched(group, removed)
        return Costs({kind: partial(_difference, before, after, kind) for kind in before})

    def near(self, removed: Units) -> CutCost:
        """Return the same costs with the peak of the activations shared out near a cut."""
        nearer = copy(self)
        nearer._shares = cache(partial(self._peak_shares, removed))
        return nearer

    def _constants(self, part: _Part, shape_of: ShapeOf) -> Costs:
        parameters = [name for name in part.constants if name in self._parameters]
        bytes_of = partial(observed_bytes, self._facts.first, shape_of=shape_of)
        return Costs(
            {
                "params": lambda: sum(prod(shape_of(name)) for name in parameters),
                "weights": lambda: sum(map(bytes_of, part.constants)),
            }
        )

    def _nodes(self, part: _Part, shape_of: ShapeOf) -> dict[str, Callable[[], float]]:
        def total(kind: str) -> float:
            count, seen = self._counters[kind], self._seen(shape_of)
            return sum(count(node, seen) for node in part.nodes[kind])

        return {kind: partial(total, kind) for kind in self._counters}

    def _count_fixed(self) -> tuple[int, int]:
        """Parameters, and bytes of constants, that no cut reaches: those in closed bodies."""
        parameters = bytes_ = 0
        for sign, tensors in (
            (1, all_constants(self._graph)),
            (-1, self._facts.constants.values()),
        ):
            for tensor in tensors:
                shape = extents(tensor)
                parameters += sign * is_parameter(tensor) * prod(shape)
                bytes_ += sign * tensor_bytes(shape, ir.DataType(tensor.dtype))
        return parameters, bytes_

    def _find_part(self, group: Group) -> _Part:
        """What depends on a group: all that carries one of its units."""
        of_unit = self._tensors_of()
        names = dict.fromkeys(
            name for unit in group.all_units.tolist() for name in of_unit.get(unit, ())
        )
        nodes = {
            kind: [node for node in all_nodes if not names.keys().isdisjoint(tensors_of(node))]
            for kind, all_nodes in self._whole.nodes.items()
        }
        constants = self._facts.constants
        alive = frozenset(self._lifetimes.names)
        return _Part(
            [name for name in names if name in constants],
            [name for name in names if name in alive],
            nodes,
        )

    def _find_tensors(self) -> Mapping[int, Sequence[str]]:
        """Class -> names of the tensors that carry it."""
        names: dict[int, list[str]] = defaultdict(list)
        carried = [np.unique(units).tolist() for units in self._shapes.labels]
        for name, numbers in self._shapes.labels_of.items():
            for unit in sorted({unit for number in numbers for unit in carried[number]}):
                names[unit].append(name)
        return names

    def _peak_shares(self, removed: Units) -> Mapping[str, float]:
        shape_of = self._shapes.after(removed, everywhere=True)
        return self._lifetimes.shares(partial(observed_bytes, self._facts.first, shape_of=shape_of))


def _difference(before: Costs, after: Costs, kind: str) -> float:
    return before[kind] - after[kind]
