"""What a model would cost under a cut, from shapes alone: no model is built."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from onnxprune.cost.macs import count_parameters, is_parameter, node_macs
from onnxprune.coupling.cut import Cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from onnxprune.coupling.groups import Group
    from onnxprune.coupling.trace import Coupling

__all__ = ["CutCost"]


class CutCost:
    """Parameters and multiply-accumulates of a model at its traced size, under any cut.

    Args:
        graph: the original's main graph.
        coupling: its labels.
    """

    def __init__(self, graph: ir.Graph, coupling: Coupling) -> None:
        self._coupling = coupling
        self._parameters = [
            name for name, tensor in coupling.facts.constants.items() if is_parameter(tensor)
        ]
        shapes = coupling.facts.first.shapes
        self._nodes = [node for node in graph if node_macs(node, shapes.__getitem__)]
        self._readers: dict[str, list[ir.Node]] = defaultdict(list)
        for node in self._nodes:
            for name in {value.name for value in node.inputs if value is not None}:
                self._readers[name or ""].append(node)

    def after(self, dead: Sequence[int]) -> dict[str, int]:
        """Return {"params": elements, "macs": operations} with the classes `dead` removed."""
        return self._count(dead, self._nodes, self._parameters)

    def saved_by(self, group: Group, dead: Sequence[int]) -> dict[str, int]:
        """What removing classes of one group saves, counted over the nodes that group touches."""
        before, after = self.touched(group, ()), self.touched(group, dead)
        return {kind: before[kind] - after[kind] for kind in before}

    def touched(self, group: Group, dead: Sequence[int]) -> dict[str, int]:
        """Cost of the nodes and tensors that a group touches, with classes of any groups dead."""
        tensors = list(dict.fromkeys(owned.tensor for owned in group.owned))
        touched = [*tensors, *(reading.consumer.tensor for reading in group.readings)]
        nodes = {id(node): node for name in touched for node in self._readers[name]}
        return self._count(dead, nodes.values(), tensors)

    def _count(
        self, dead: Sequence[int], nodes: Iterable[ir.Node], tensors: Iterable[str]
    ) -> dict[str, int]:
        cut = Cut(self._coupling, dead)
        shapes: dict[str, tuple[int, ...]] = {}

        def shape_of(name: str) -> tuple[int, ...]:
            if name not in shapes:
                shapes[name] = cut.shape(name)
            return shapes[name]

        return {
            "params": count_parameters(shape_of, tensors),
            "macs": sum(node_macs(node, shape_of) for node in nodes),
        }
