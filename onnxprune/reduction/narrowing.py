"""Cutting an axis of the interface: entries of an output axis, rows of a table that is looked up.

The labels of the axis lead back to the weights that make it (`coupling/`), an `Opening` says that
it may be cut, and the usual surgery cuts it. What the result has to compute is known exactly: the
outputs of the *masked* original, in which the entries that go can win no Softmax, ArgMax or TopK,
taken at the entries that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.closure import ConstraintSet, close
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.groups import find_refusals
from onnxprune.coupling.opening import Opening, looks_up, picks_among, reads_all
from onnxprune.coupling.step import node_id
from onnxprune.coupling.trace import trace
from onnxprune.errors import NothingPrunable, RuntimeFailure, VerificationError
from onnxprune.model.execution import Execution
from onnxprune.reduction.whole_axis import (
    PICKERS,
    exclude_entries,
    map_picked,
    picked_axis,
    whole_axis_readers,
)
from onnxprune.surgery.slicing import slice_removed
from onnxprune.verification.certificate import tolerance_for
from onnxprune.verification.difference import largest_difference
from onnxprune.verification.gates import check_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.coupling.trace import Coupling
    from onnxprune.model.observe import Facts
    from onnxprune.model.runtime import Runtime

__all__ = ["Narrowing", "apply", "check", "narrow"]


@dataclass(frozen=True)
class Narrowing:
    """Which entries of which axes stay, and all that goes with the others.

    Attributes:
        cut: what survives of every tensor.
        axes: output -> the axis that loses entries.
        kept: the entries that stay, ascending, int64 [kept].
    """

    cut: Cut
    axes: Mapping[str, int]
    kept: NDArray[np.int64]


def narrow(
    model: ir.Model,
    facts: Facts,
    kept: NDArray[np.int64],
    size: int,
    candidates: Mapping[str, Sequence[int]],
    lookups: Sequence[ir.Node] = (),
) -> Narrowing:
    """Find what goes with the entries of an axis that are not kept.

    Args:
        model: unchanged.
        facts: its shapes.
        kept: entries that stay, ascending.
        size: how many there are.
        candidates: output -> axes of that size; exactly one of them has to be cuttable.
        lookups: Gather nodes whose tables lose the same rows.

    Raises:
        NothingPrunable: when an axis cannot be cut, or it is not clear which one is meant.
    """
    opening = _opening(model, candidates, lookups)
    coupling = trace(model, facts, opening=opening)
    removed = np.setdiff1d(np.arange(size), kept)
    seeds: list[int] = []
    held: list[int] = []
    axes: dict[str, int] = {}
    for name, choices in candidates.items():
        found = {axis: _classes(coupling, name, axis, removed) for axis in choices}
        cuttable = [axis for axis, classes in found.items() if isinstance(classes, list)]
        if not cuttable:
            reason = next(text for text in found.values() if isinstance(text, str))
            raise NothingPrunable(f"the entries of output {name!r} cannot be removed: {reason}")
        if len(cuttable) > 1:
            raise NothingPrunable(
                f"output {name!r} has the axes {cuttable} with {size} entries each; "
                "it is not clear which one is meant"
            )
        axes[name] = cuttable[0]
        seeds += [one for one in found[cuttable[0]] if isinstance(one, int)]
        held += _atoms_at(coupling, name, cuttable[0], kept)
    for node in lookups:
        table = node.inputs[0].name or "" if node.inputs[0] is not None else ""
        classes = _classes(coupling, table, 0, removed)
        if isinstance(classes, str):
            raise NothingPrunable(f"the rows of {table!r} cannot be removed: {classes}")
        seeds += classes
        held += _atoms_at(coupling, table, 0, kept)
    return Narrowing(Cut(coupling, _closed(coupling, seeds, held)), axes, kept)


def apply(model: ir.Model, narrowing: Narrowing) -> None:
    """Cut a model in place: weights, sizes, declared outputs, indices that ArgMax and TopK give.

    Raises:
        NothingPrunable: when the graph cannot express the smaller model.
    """
    cut, kept = narrowing.cut, narrowing.kept
    pickers = [node for node in _narrowed_readers(model, cut) if _picks_along(node, cut)]
    try:
        slice_removed(model, cut)
    except CutError as error:
        raise NothingPrunable(f"what is asked for cannot be cut away: {error}") from error
    for node in pickers:
        map_picked(model.graph, node, kept)
    for value in model.graph.outputs:
        axis = narrowing.axes.get(value.name or "")
        if axis is not None and value.shape is not None and isinstance(value.shape[axis], int):
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
    for node in _narrowed_readers(masked, narrowing.cut):
        exclude_entries(masked.graph, node, narrowing.cut)
    before, after = [one for one, _ in feeds], [one for _, one in feeds]
    try:
        wanted = Execution(masked, runtime, optimise=False).run_all(before)
        got = Execution(result, runtime, optimise=False).run_all(after)
    except RuntimeFailure as error:
        raise VerificationError(f"the narrowed model does not run: {error}") from error
    taken = [
        {
            name: np.take(value, narrowing.kept, narrowing.axes[name])
            if name in narrowing.axes
            else value
            for name, value in outputs.items()
        }
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


def _opening(
    model: ir.Model, candidates: Mapping[str, Sequence[int]], lookups: Sequence[ir.Node]
) -> Opening:
    rules = {
        node_id(node): picks_among if node.op_type in PICKERS else reads_all
        for node in whole_axis_readers(model.graph)
    }
    rules |= {node_id(node): looks_up for node in lookups}
    axes = {name: frozenset(some) for name, some in candidates.items()}
    return Opening(axes, rules, frozenset(map(node_id, lookups)))


def _classes(
    coupling: Coupling, name: str, axis: int, removed: NDArray[np.int64]
) -> list[int] | str:
    """Classes of the entries that go, or why they cannot."""
    atoms = _atoms_at(coupling, name, axis, removed, of_class=False)
    frozen = [one for one in atoms if not coupling.classes[one]]
    if frozen:
        reason = coupling.relations.reason(frozen[0])
        return f"{reason.text} (at {reason.node})" if reason else "they are fixed"
    if atoms:
        return [int(one) for one in np.unique(coupling.classes[atoms])]
    size = coupling.tensors[name].shape[axis] if name in coupling.tensors else 0
    for refused in find_refusals(coupling):
        tensor, _, place = refused.axis.rpartition("[")
        shape = coupling.tensors[tensor].shape
        if shape[int(place.removesuffix("]"))] == size:
            return f"{refused.axis} stays whole: {refused.reason} (at {refused.node})"
    return "no weight makes them one by one"


def _atoms_at(
    coupling: Coupling, name: str, axis: int, index: NDArray[np.int64], *, of_class: bool = True
) -> list[int]:
    """Atoms at some positions of an axis, or their classes."""
    labels = coupling.tensors.get(name)
    found: set[int] = set()
    for layer in labels.layers if labels is not None else ():
        if axis in layer.axes:
            atoms = layer.atoms.take(index, axis=layer.axes.index(axis))
            found |= set(np.unique(coupling.classes[atoms] if of_class else atoms).tolist())
    return sorted(found)


def _closed(coupling: Coupling, seeds: Sequence[int], held: Sequence[int]) -> list[int]:
    """All classes that go with the seeds.

    Raises:
        NothingPrunable: when something would have to go that is kept.
    """
    relations, classes = coupling.relations, coupling.classes
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
    gone = close(constraints, constraints.by_class(), dead, seeds, cost)
    if gone is None or set(gone) & set(held):
        raise NothingPrunable(
            "the entries that are to go share weights with entries that stay; they cannot be cut"
        )
    return gone


def _narrowed_readers(model: ir.Model, cut: Cut) -> list[ir.Node]:
    """Nodes that read all of an axis of a tensor that loses something."""
    return [
        node
        for node in whole_axis_readers(model.graph)
        if node.inputs[0] is not None and cut.touches(node.inputs[0].name or "")
    ]


def _picks_along(node: ir.Node, cut: Cut) -> bool:
    """Whether a node gives positions along an axis that loses entries."""
    name = node.inputs[0].name or "" if node.inputs[0] is not None else ""
    rank = len(cut.coupling.tensors[name].shape)
    return node.op_type in PICKERS and cut.positions(name, picked_axis(node, rank)) is not None
