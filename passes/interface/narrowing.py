"""Cutting an axis of the interface: entries of an output axis, rows of a table that is looked up.

The labels of the axis lead back to the weights that make it (`coupling/`), an `Opening` says that
it may be cut, and the usual surgery cuts it. What the result has to compute is known exactly: the
outputs of the *masked* original, in which the entries that go can win no Softmax, ArgMax or TopK,
taken at the entries that stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxprune.passes.interface.lookups import Lookup
from onnxprune.passes.interface.parts import Part
from onnxprune.passes.interface.whole_axis import (
    common_positions,
    exclude_entries,
    map_picked,
    narrowed_readers,
    picked_positions,
    rule_among,
    whole_axis_readers,
)

from onnxprune.coupling.closure import ConstraintSet, close
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.cuttable_interface import LOOKUP_RULES, Opening
from onnxprune.coupling.groups import find_refusals
from onnxprune.coupling.step import node_id
from onnxprune.coupling.trace import Coupling, display_name, trace
from onnxprune.errors import NothingPrunable, RuntimeFailure, VerificationError
from onnxprune.model.execution import Execution
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.slicing import slice_removed
from onnxprune.verification.certificate import tolerance_for
from onnxprune.verification.comparison import largest_difference
from onnxprune.verification.gates import check_runs


@dataclass(frozen=True)
class Narrowing:
    """Which entries of which axes stay, and all that goes with the others.

    Attributes:
        cut: what survives of every tensor.
        axes: output -> axis -> the positions that stay, ascending, int64, of axes that lose any.
    """

    cut: Cut
    axes: Mapping[str, Mapping[int, NDArray[np.int64]]]

    def describe(self) -> dict[str, dict[int, int]]:
        """Output -> axis -> how many entries it has left, for people and JSON."""
        return {
            name: {axis: len(kept) for axis, kept in axes.items()}
            for name, axes in self.axes.items()
        }


def narrow(
    model: ir.Model,
    facts: Facts,
    kept: NDArray[np.int64],
    size: int,
    parts: Mapping[str, Sequence[Part]],
    lookups: Sequence[Lookup] = (),
) -> Narrowing:
    """Find what goes with the entries of an axis that are not kept.

    Args:
        model: unchanged.
        facts: its shapes.
        kept: entries that stay, ascending.
        size: how many there are.
        parts: output, or tensor that is chosen among -> where these entries may lie; just one of
            the places has to be cuttable, and where no weight makes any of them nothing is cut.
            Outputs that are not named lose what goes with these entries.
        lookups: their tables lose the same rows.

    Raises:
        NothingPrunable: when an axis cannot be cut, or it is not clear which one is meant.
    """
    coupling = trace(model, facts, opening=_opening(model, facts, lookups))
    removed = np.setdiff1d(np.arange(size), kept)
    seeds: list[int] = []
    held: list[int] = []
    for name in parts:
        part = _cuttable_part(coupling, name, parts, removed, size)
        if part is not None:
            found = _classes(coupling, name, part.axis, part.first + removed)
            seeds += [one for one in found if isinstance(one, int)]
            held += _atoms_at(coupling, name, part.axis, part.first + kept)
    if not seeds and not lookups:
        raise NothingPrunable(_no_weight(model, parts, size))
    for lookup in lookups:
        found = _classes(coupling, lookup.table, 0, removed)
        if isinstance(found, str):
            raise NothingPrunable(f"the rows of {lookup.table!r} cannot be removed: {found}")
        seeds += found
        held += _atoms_at(coupling, lookup.table, 0, kept)
    cut = Cut(coupling, _closed(coupling, seeds, held))
    _refuse_sums(cut)
    outputs = [value.name or "" for value in model.graph.outputs]
    axes = {name: _kept_along(cut, name) for name in outputs}
    return Narrowing(cut, {name: some for name, some in axes.items() if some})


def apply(model: ir.Model, narrowing: Narrowing) -> None:
    """Cut a model in place: weights, sizes, declared outputs, indices that ArgMax and TopK give.

    Raises:
        NothingPrunable: when the graph cannot express the smaller model.
    """
    cut = narrowing.cut
    picking = [
        (node, kept)
        for node in narrowed_readers(model.graph, cut)
        if (kept := picked_positions(node, cut)) is not None
    ]
    try:
        slice_removed(model, cut)
    except CutError as error:
        raise NothingPrunable(f"what is asked for cannot be cut away: {error}") from error
    for node, kept in picking:
        map_picked(model.graph, node, kept)
    for value in model.graph.outputs:
        for axis, kept in narrowing.axes.get(value.name or "", {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                dims = list(value.shape)
                dims[axis] = len(kept)
                value.shape = ir.Shape(dims)


def check(
    original: ir.Model,
    result: ir.Model,
    narrowing: Narrowing,
    feeds: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]],
    runtime: Runtime,
) -> float:
    """Compare a result with the masked original.

    Args:
        original: the model as it was.
        result: the model after `apply`.
        narrowing: what was cut.
        feeds: pairs of the same inputs, as the original and as the result take them.
        runtime: how to run both.

    Returns:
        The largest difference, relative to the output's largest value.

    Raises:
        VerificationError: when outputs differ, or the result is not valid.
    """
    masked = original.clone()
    for node in narrowed_readers(masked.graph, narrowing.cut):
        exclude_entries(masked.graph, node, narrowing.cut)
    before, after = [one for one, _ in feeds], [one for _, one in feeds]
    try:
        wanted = Execution(masked, runtime, optimise=False).run_all(before)
        got = Execution(result, runtime, optimise=False).run_all(after)
    except RuntimeFailure as error:
        raise VerificationError(f"the narrowed model does not run: {error}") from error
    taken = [
        {name: _taken(value, narrowing.axes.get(name, {})) for name, value in outputs.items()}
        for outputs in wanted
    ]
    tolerance = tolerance_for(original)
    apart = max(map(largest_difference, taken, got), default=0.0)
    if not apart <= tolerance:
        raise VerificationError(
            f"the narrowed model differs from the original at the entries that stay by {apart:.1e} "
            f"(tolerance {tolerance:.0e})"
        )
    check_runs(original, result, after, got, runtime, tolerance)
    return apart


def _opening(model: ir.Model, facts: Facts, lookups: Sequence[Lookup]) -> Opening:
    """Every axis of every output may be cut, save the first of several, which counts samples."""
    rules = {node_id(node): rule_among(node) for node in whole_axis_readers(model.graph)}
    rules |= {node_id(one.node): LOOKUP_RULES[one.op](one.table_slot) for one in lookups}
    names = [value.name or "" for value in model.graph.outputs]
    ranks = {name: len(facts.first.shapes.get(name, ())) for name in names}
    axes = {name: frozenset(range(min(1, rank - 1), rank)) for name, rank in ranks.items()}
    return Opening(axes, rules, frozenset(node_id(one.node) for one in lookups))


def _cuttable_part(
    coupling: Coupling,
    name: str,
    parts: Mapping[str, Sequence[Part]],
    removed: NDArray[np.int64],
    size: int,
) -> Part | None:
    """The one of several places in an output that can be cut; None where no weight makes any.

    Raises:
        NothingPrunable: when something makes them and none can be cut, or more than one can.
    """
    found = {one: _classes(coupling, name, one.axis, one.first + removed) for one in parts[name]}
    cuttable = [one for one, classes in found.items() if isinstance(classes, list)]
    if len(cuttable) > 1:
        raise NothingPrunable(
            f"{name!r} has the axes {sorted(one.axis for one in cuttable)} with {size} "
            "entries each; it is not clear which one is meant"
        )
    reason = next((text for text in found.values() if isinstance(text, str) and text), "")
    if not cuttable and reason:
        remedy = (
            "; if another output is meant, name it with outputs=[...]" if len(parts) > 1 else ""
        )
        raise NothingPrunable(f"the entries of {name!r} cannot be removed: {reason}{remedy}")
    return cuttable[0] if cuttable else None


def _no_weight(model: ir.Model, parts: Mapping[str, Sequence[Part]], size: int) -> str:
    """Why nothing can be removed, where no weight is known that makes the entries."""
    name, places = next(iter(parts.items()))
    axes = " or ".join(str(one.axis) for one in places)
    makers = [
        display_name(node) for node in model.graph for value in node.outputs if value.name == name
    ]
    return (
        f"the {size} entries of {name!r} along axis {axes} cannot be removed: no weight is known "
        f"that makes them one by one (the tensor is made by {', '.join(makers) or 'nothing'})"
    )


def _refuse_sums(cut: Cut) -> None:
    """Refuse to remove what is added up further on.

    Raises:
        NothingPrunable: naming the node that does.
    """
    for consumer in cut.coupling.consumers:
        if cut.positions(consumer.tensor, consumer.axis) is not None:
            raise NothingPrunable(
                f"{consumer.node!r} is worked out from all entries of {consumer.tensor!r} "
                "together; it would change if some were removed"
            )


def _kept_along(cut: Cut, name: str) -> dict[int, NDArray[np.int64]]:
    """Positions that stay along every axis of an output that loses some.

    Raises:
        NothingPrunable: when they differ from row to row.
    """
    found = {}
    for axis in range(len(cut.coupling.tensors[name].shape)) if cut.touches(name) else ():
        kept = common_positions(cut, name, axis)
        if kept is not None:
            found[axis] = kept
    return found


def _taken(value: Any, axes: Mapping[int, NDArray[np.int64]]) -> Any:
    for axis, kept in axes.items():
        value = np.take(value, kept, axis)
    return value


def _classes(
    coupling: Coupling, name: str, axis: int, removed: NDArray[np.int64]
) -> list[int] | str:
    """Classes of the entries that go, or why they cannot; "" where nothing is known of them."""
    atoms = _atoms_at(coupling, name, axis, removed, of_class=False)
    frozen = [one for one in atoms if not coupling.unit_of[one]]
    if frozen:
        reason = coupling.relations.reason(frozen[0])
        return f"{reason.text} (at {reason.node})" if reason else "they are fixed"
    if atoms:
        return [int(one) for one in np.unique(coupling.unit_of[atoms])]
    size = coupling.tensors[name].shape[axis] if name in coupling.tensors else 0
    for refused in find_refusals(coupling):
        tensor, _, place = refused.axis.rpartition("[")
        shape = coupling.tensors[tensor].shape
        if shape[int(place.removesuffix("]"))] == size:
            return f"{refused.axis} stays whole: {refused.reason} (at {refused.node})"
    return ""


def _atoms_at(
    coupling: Coupling, name: str, axis: int, index: NDArray[np.int64], *, of_class: bool = True
) -> list[int]:
    """Atoms at some positions of an axis, or their classes."""
    labels = coupling.tensors.get(name)
    found: set[int] = set()
    for label in labels.axis_labels if labels is not None else ():
        if axis in label.axes:
            atoms = label.atoms.take(index, axis=label.axes.index(axis))
            found |= set(np.unique(coupling.unit_of[atoms] if of_class else atoms).tolist())
    return sorted(found)


def _closed(coupling: Coupling, seeds: Sequence[int], held: Sequence[int]) -> list[int]:
    """All classes that go with the seeds.

    Raises:
        NothingPrunable: when something would have to go that is kept.
    """
    relations, classes = coupling.relations, coupling.unit_of
    constraints = ConstraintSet(
        tuple(
            (int(classes[composite]), np.unique(classes[members]))
            for composite, members in relations.definitions
        ),
        tuple(classes[atoms] for atoms in relations.rectangles),
        tuple(np.unique(classes[atoms], axis=0) for atoms in relations.alignments),
    )
    dead = np.zeros(relations.count, bool)
    cost = np.ones(relations.count)
    gone = close(constraints, constraints.by_unit(), dead, seeds, cost)
    if gone is None or set(gone) & set(held):
        raise NothingPrunable(
            "the entries that are to go share weights with entries that stay; they cannot be cut"
        )
    return gone
