"""Bodies of If, Loop and Scan that samples hardly run: nothing is known of what is in them.

Statistics are taken over the runs there were, so a unit that only an idle body makes or reads looks
dead, and no layer in there can be re-fitted. What has weights or readers in an idle body is
refused; a unit that merely passes through one is not taken for constant because of the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.groups import Group, Refused
from onnxprune.coupling.trace import Coupling, display_name
from onnxprune.model.bodies import Place, places


def without_idle(
    graph: ir.Graph, coupling: Coupling, groups: Sequence[Group]
) -> tuple[list[Group], list[Refused], frozenset[str]]:
    """Refuse groups that idle bodies take part in.

    Args:
        graph: the main graph.
        coupling: its labels, and which bodies are idle.
        groups: all groups.

    Returns:
        the groups that are left, what is refused, and the names of groups that pass through an
        idle body.
    """
    idle = {key: place for key, place in places(graph).items() if key in coupling.idle}
    reasons = {
        id(place.graph): f"{coupling.idle[key]} {place}, so it stays whole; give more that do"
        for key, place in idle.items()
    }
    where = _tensors_in(idle)
    carried = {
        unit
        for name in where
        if name in coupling.tensors
        for label in coupling.tensors[name].axis_labels
        for unit in np.unique(coupling.unit_of[label.atoms]).tolist()
    }
    left, refused, passing = [], [], set()
    for group in groups:
        found = [where[owned.tensor] for owned in group.owned if owned.tensor in where]
        found += [
            idle[reading.consumer.body]
            for reading in group.readings
            if reading.consumer.body in idle
        ]
        if found:
            refused += _refused(group, found[0], reasons[id(found[0].graph)], coupling)
            continue
        left.append(group)
        if carried.intersection(group.all_units.tolist()):
            passing.add(group.name)
    return left, refused, frozenset(passing)


def _tensors_in(idle: dict[str, Place]) -> dict[str, Place]:
    """Names that the nodes of bodies read and make."""
    names = {}
    for place in idle.values():
        for node in place.graph:
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name:
                    names[value.name] = place
    return names


def _refused(group: Group, place: Place, reason: str, coupling: Coupling) -> list[Refused]:
    node, facts = display_name(place.node), coupling.facts.constants
    return [
        Refused(owned.tensor, owned.axes[0], node, reason, facts[owned.tensor].size)
        for owned in group.owned
    ]
