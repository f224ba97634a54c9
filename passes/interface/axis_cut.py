"""Cutting an axis of the interface: entries of an output axis, rows of a table that is looked up.

The labels of the axis lead back to the weights that make it (`coupling/`), a `CuttableInterface`
says that it may be cut, and the usual surgery cuts it. What the result has to compute is known: the
outputs of the *masked* original, in which the removed entries can win no Softmax, ArgMax or TopK,
taken at the entries that stay.

Nodes that read all entries of an axis at once (Softmax, ReduceMax, ArgMax and their like) have a
rule each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.closure import ConstraintSet, close
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.cuttable_interface import (
    LOOKUP_RULES,
    CuttableInterface,
    picks_among,
    reads_all,
    reduces_among,
    suppresses_among,
)
from onnxprune.coupling.groups import find_refusals
from onnxprune.coupling.step import Step
from onnxprune.coupling.trace import Coupling, display_name, trace
from onnxprune.errors import NothingPrunable, RuntimeFailure, VerificationError
from onnxprune.model.bodies import node_id
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import list_initializers
from onnxprune.model.observe import Facts, constant_array
from onnxprune.model.runtime import Runtime
from onnxprune.passes.interface.lookups import Lookup
from onnxprune.passes.interface.parts import Part
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.linear import LINEAR_OPS
from onnxprune.surgery.slicing import slice_removed
from onnxprune.verification.certificate import check_result, tolerance_for
from onnxprune.verification.comparison import largest_difference

_SUPPRESSION = "NonMaxSuppression"
_PICKERS = frozenset({"ArgMax", "ArgMin", "TopK", _SUPPRESSION})
_EXTREMES = frozenset({"ReduceMax", "ReduceMin"})
_NORMALISERS = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_WEIGHING = LINEAR_OPS | {"Attention", "GRU", "LSTM", "RNN", "MatMulInteger", "QLinearMatMul"}


def whole_axis_readers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes that may run over the rest of an axis without changing the meaning of their result.

    ArgMax and its like always may; Softmax, also as sum of exponentials, and ReduceMax may where
    nothing after them multiplies their results with weights: the shares would be others.
    """
    for node in graph:
        among = node.domain == "" and node.op_type in _NORMALISERS | _EXTREMES
        among = among or _sums_exponentials(node)
        if _is_picker(node) or (among and not _is_weighed(node)):
            yield node


def rule_among(node: ir.Node) -> Callable[[Step], None]:
    """Coupling rule of one of `whole_axis_readers`."""
    if node.op_type == _SUPPRESSION:
        return suppresses_among
    if node.op_type in _PICKERS:
        return picks_among
    return reads_all if node.op_type in _NORMALISERS else reduces_among


def cut_readers(graph: ir.Graph, cut: Cut) -> list[ir.Node]:
    """Those of `whole_axis_readers` that read a tensor which loses entries."""
    return [node for node in whole_axis_readers(graph) if cut.touches(_read(node).name or "")]


def axes_picked_along(graph: ir.Graph, facts: Facts) -> dict[str, int]:
    """Tensors along an axis of which a node returns positions, with that axis."""
    shapes = facts.first.shapes
    names = {node: _read(node).name or "" for node in graph if _is_picker(node)}
    return {
        name: _picked_axis(node, len(shapes[name]))
        for node, name in names.items()
        if name in shapes
    }


def common_positions(cut: Cut, name: str, axis: int) -> NDArray[np.int64] | None:
    """Positions of an axis that stay, in every row of the axes around it; None where all do.

    Raises:
        NothingPrunable: when they differ from row to row.
    """
    rows = cut.positions(name, axis)
    if rows is None:
        return None
    if (rows != rows[0]).any():
        raise NothingPrunable(
            f"what would stay along axis {axis} of {name!r} differs from row to row"
        )
    return np.flatnonzero(rows[0])


def picked_positions(node: ir.Node, cut: Cut) -> NDArray[np.int64] | None:
    """Remaining positions that a node picks among; None where it returns none or all remain.

    Raises:
        NothingPrunable: when they differ from row to row, or depend on the size of the input.
    """
    if node.op_type not in _PICKERS:
        return None
    name, facts = _read(node).name or "", cut.coupling.facts
    axis = _picked_axis(node, len(facts.first.shapes[name]))
    kept = common_positions(cut, name, axis)
    if kept is not None and facts.first.shapes[name][axis] != facts.second.shapes[name][axis]:
        raise NothingPrunable(
            f"{node.op_type} {node.name or node.outputs[0].name} returns positions along an axis "
            "whose length depends on the input; they cannot be mapped to the old ones"
        )
    return kept


def mask_removed(graph: ir.Graph, node: ir.Node, cut: Cut) -> None:
    """Give removed entries a value that loses every comparison, or adds nothing to a sum.

    Args:
        graph: changed in place.
        node: one of `whole_axis_readers`.
        cut: what is removed.
    """
    value = _read(node)
    name = value.name or ""
    labels = cut.coupling.tensors[name]
    alive = np.ones([1] * len(labels.shape), bool)
    for label in labels.axis_labels:
        kept = cut.alive(label).transpose(np.argsort(label.axes))
        if not kept.all():
            extents = [n if a in label.axes else 1 for a, n in enumerate(labels.shape)]
            alive = alive & kept.reshape(extents)
    for axis in range(alive.ndim):  # a mask that does not depend on an axis fits any length
        same = alive.take([0], axis)
        alive = same if (alive == same).all() else alive
    smallest = node.op_type in ("ArgMin", "ReduceMin") or (
        node.op_type == "TopK" and node.attributes.get_int("largest", 1) == 0
    )
    editor = Editor(graph)
    dtype = cut.coupling.facts.first.types[name].numpy()
    losing = np.inf if smallest else -np.inf
    worst = np.array(0 if _sums_exponentials(node) else losing, dtype)
    base = f"{node.outputs[0].name}/excluded"
    mask, literal = (editor.add_initializer(base, array) for array in (alive, worst))
    where = ir.Node("", "Where", [mask, value, literal], num_outputs=1)
    where.outputs[0].name = editor.unique_name(base)
    graph.insert_before(node, where)
    node.replace_input_with(_read_slot(node), where.outputs[0])
    if node.op_type == _SUPPRESSION and (len(node.inputs) < 5 or node.inputs[4] is None):
        # without a threshold, NonMaxSuppression returns what no score is lower than
        node.resize_inputs(5)
        lowest = np.array([np.finfo(np.float32).min], np.float32)
        node.replace_input_with(4, editor.add_initializer(f"{base}_threshold", lowest))


def map_picked(graph: ir.Graph, node: ir.Node, kept: NDArray[np.int64]) -> None:
    """Map positions among the entries that stay to the old ones: a Gather after the node.

    Args:
        graph: changed in place.
        node: ArgMax, ArgMin or TopK along the axis that lost entries.
        kept: the entries that stay.

    Raises:
        NothingPrunable: when a TopK returns more entries than remain.
    """
    picked = node.outputs[1 if node.op_type == "TopK" else 0]
    if node.op_type == "TopK":
        count = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
        wanted = node.attributes.get_int("k", 0) if count is None else int(count.item())
        if wanted > len(kept):
            raise NothingPrunable(
                f"TopK {node.name or picked.name} gives {wanted} of {len(kept)} entries; keep more"
            )
    if not picked.name:
        return
    editor = Editor(graph)
    table = editor.add_initializer(f"{picked.name}/kept", kept)
    nodes = (
        _columns_mapped(editor, picked, table)
        if node.op_type == _SUPPRESSION
        else [ir.Node("", "Gather", [table, picked], num_outputs=1)]
    )
    mapped = nodes[-1].outputs[0]
    mapped.type, mapped.shape = picked.type, picked.shape
    graph.insert_after(node, nodes)
    for consumer, slot in [use for use in picked.uses() if use.node not in nodes]:
        consumer.replace_input_with(slot, mapped)
    for slot, value in enumerate(graph.outputs):
        if value is picked:
            graph.outputs[slot] = mapped
    mapped.name, picked.name = picked.name, editor.unique_name(f"{picked.name}/among_kept")


def _columns_mapped(editor: Editor, picked: ir.Value, table: ir.Value) -> list[ir.Node]:
    """Nodes that map the second of three columns: [sample, class, box]."""
    columns = [
        ir.Node(
            "",
            "Gather",
            [picked, editor.add_initializer(f"{picked.name}/column", np.array([column]))],
            [ir.AttrInt64("axis", 1)],
            num_outputs=1,
        )
        for column in range(3)
    ]
    numbers = ir.Node("", "Gather", [table, columns[1].outputs[0]], num_outputs=1)
    parts = [columns[0].outputs[0], numbers.outputs[0], columns[2].outputs[0]]
    joined = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 1)], num_outputs=1)
    for node in (*columns, numbers):
        node.outputs[0].name = editor.unique_name(f"{picked.name}/by_column")
    return [*columns, numbers, joined]


def _sums_exponentials(node: ir.Node) -> bool:
    """Whether a node is the denominator of a Softmax that is written out."""
    if node.domain or node.op_type != "ReduceSum" or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return maker is not None and not maker.domain and maker.op_type == "Exp"


def _is_picker(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type in _PICKERS


def _read_slot(node: ir.Node) -> int:
    return 1 if node.op_type == _SUPPRESSION else 0


def _read(node: ir.Node) -> ir.Value:
    value = node.inputs[_read_slot(node)]
    assert value is not None
    return value


def _picked_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == _SUPPRESSION:
        return 1
    return node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0) % rank


def _is_weighed(node: ir.Node) -> bool:
    """Whether a result is multiplied with weights, or with another activation, later on."""
    waiting, seen = [node], {node}
    while waiting:
        for value in waiting.pop().outputs:
            for reader, _ in value.uses():
                if reader.op_type in _WEIGHING or reader.op_type in _NORMALISERS:
                    return True
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
    return False


@dataclass(frozen=True)
class AxisCut:
    """Which entries of which axes stay, and all that is removed with the others.

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


def find_cut(
    model: ir.Model,
    facts: Facts,
    kept: NDArray[np.int64],
    size: int,
    parts: Mapping[str, Sequence[Part]],
    lookups: Sequence[Lookup] = (),
) -> AxisCut:
    """Find all that is removed with the entries of an axis that are not kept.

    Args:
        model: unchanged.
        facts: its shapes.
        kept: entries that stay, ascending.
        size: how many there are.
        parts: output, or tensor along which positions are picked -> where these entries may lie;
            exactly one of the places has to be cuttable, and where no weight makes any of them
            nothing is cut. Outputs that are not named lose what is removed with these entries.
        lookups: their tables lose the same rows.

    Raises:
        NothingPrunable: when an axis cannot be cut, or it is not clear which one is meant.
    """
    coupling = trace(model, facts, opening=_opening(model, facts, lookups))
    removed = np.setdiff1d(np.arange(size), kept)
    seeds: list[int] = []
    held: list[int] = []
    for name in parts:
        part, units = _cuttable_part(coupling, name, parts, removed, size)
        seeds += units
        held += (
            _units(coupling, _atoms_at(coupling, name, part.axis, part.first + kept))
            if units
            else []
        )
    if not seeds and not lookups:
        raise NothingPrunable(_no_weight(model, parts, size))
    for lookup in lookups:
        try:
            seeds += _removable_units(coupling, lookup.table, 0, removed)
        except _Refusal as refusal:
            raise NothingPrunable(
                f"the rows of {lookup.table!r} cannot be removed: {refusal}"
            ) from None
        held += _units(coupling, _atoms_at(coupling, lookup.table, 0, kept))
    cut = Cut(coupling, _closed(coupling, seeds, held))
    _refuse_sums(cut)
    outputs = [value.name or "" for value in model.graph.outputs]
    axes = {name: _kept_along(cut, name) for name in outputs}
    return AxisCut(cut, {name: kept_along for name, kept_along in axes.items() if kept_along})


def apply(model: ir.Model, axis_cut: AxisCut) -> None:
    """Cut a model in place: weights, sizes, declared outputs, indices that ArgMax and TopK give.

    Raises:
        NothingPrunable: when the graph cannot express the smaller model.
    """
    cut = axis_cut.cut
    picking = [
        (node, kept)
        for node in cut_readers(model.graph, cut)
        if (kept := picked_positions(node, cut)) is not None
    ]
    try:
        slice_removed(model, cut)
    except CutError as error:
        raise NothingPrunable(f"these entries cannot be removed: {error}") from error
    for node, kept in picking:
        map_picked(model.graph, node, kept)
    for value in model.graph.outputs:
        for axis, kept in axis_cut.axes.get(value.name or "", {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                dims = list(value.shape)
                dims[axis] = len(kept)
                value.shape = ir.Shape(dims)
    list_initializers(model)


def check(
    original: ir.Model,
    result: ir.Model,
    axis_cut: AxisCut,
    feeds: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]],
    runtime: Runtime,
) -> float:
    """Compare a result with the masked original.

    Args:
        original: the model as it was.
        result: the model after `apply`.
        axis_cut: what was cut.
        feeds: pairs of the same inputs, as the original and as the result take them.
        runtime: how to run both.

    Returns:
        The largest difference, relative to the output's largest value.

    Raises:
        VerificationError: when outputs differ, or the result is not valid.
    """
    masked = original.clone()
    for node in cut_readers(masked.graph, axis_cut.cut):
        mask_removed(masked.graph, node, axis_cut.cut)
    before, after = [first for first, _ in feeds], [second for _, second in feeds]
    try:
        wanted = Execution(masked, runtime, optimise=False).run_all(before)
        got = Execution(result, runtime, optimise=False).run_all(after)
    except RuntimeFailure as error:
        raise VerificationError(f"the cut model does not run: {error}") from error
    taken = [
        {name: _taken(value, axis_cut.axes.get(name, {})) for name, value in outputs.items()}
        for outputs in wanted
    ]
    tolerance = tolerance_for(original)
    difference = max(map(largest_difference, taken, got), default=0.0)
    if not difference <= tolerance:
        raise VerificationError(
            "the cut model differs from the original at the entries that stay by "
            f"{difference:.1e} (tolerance {tolerance:.0e})"
        )
    check_result(original, result, after, got, runtime, tolerance, same_interface=False)
    return difference


def _opening(model: ir.Model, facts: Facts, lookups: Sequence[Lookup]) -> CuttableInterface:
    """Every axis of every output may be cut, save the first of several, which counts samples."""
    rules = {node_id(node): rule_among(node) for node in whole_axis_readers(model.graph)}
    rules |= {
        node_id(lookup.node): LOOKUP_RULES[lookup.op](lookup.table_slot) for lookup in lookups
    }
    names = [value.name or "" for value in model.graph.outputs]
    ranks = {name: len(facts.first.shapes.get(name, ())) for name in names}
    axes = {name: frozenset(range(min(1, rank - 1), rank)) for name, rank in ranks.items()}
    return CuttableInterface(axes, rules, frozenset(node_id(lookup.node) for lookup in lookups))


def _cuttable_part(
    coupling: Coupling,
    name: str,
    parts: Mapping[str, Sequence[Part]],
    removed: NDArray[np.int64],
    size: int,
) -> tuple[Part, list[int]]:
    """The one of several places in an output that can be cut, with the units that are removed.

    Where no weight makes the entries at any place, there are no units.

    Raises:
        NothingPrunable: when weights make them and none can be cut, or more than one can.
    """
    cuttable: list[tuple[Part, list[int]]] = []
    reasons = []
    for part in parts[name]:
        try:
            units = _removable_units(coupling, name, part.axis, part.first + removed)
            cuttable += [(part, units)] if units else []
        except _Refusal as refusal:
            reasons.append(str(refusal))
    if len(cuttable) > 1:
        raise NothingPrunable(
            f"{name!r} has the axes {sorted(part.axis for part, _ in cuttable)} with {size} "
            "entries each; it is not clear which one is meant"
        )
    if reasons and not cuttable:
        remedy = (
            "; if another output is meant, name it with outputs=[...]" if len(parts) > 1 else ""
        )
        raise NothingPrunable(f"the entries of {name!r} cannot be removed: {reasons[0]}{remedy}")
    return cuttable[0] if cuttable else (parts[name][0], [])


def _no_weight(model: ir.Model, parts: Mapping[str, Sequence[Part]], size: int) -> str:
    """Why nothing can be removed, where no weight is known that makes the entries."""
    name, places = next(iter(parts.items()))
    axes = " or ".join(str(part.axis) for part in places)
    makers = [
        display_name(node) for node in model.graph for value in node.outputs if value.name == name
    ]
    return (
        f"the {size} entries of {name!r} along axis {axes} cannot be removed: no weight is known "
        f"that makes them one by one (the tensor is made by {', '.join(makers) or 'nothing'})"
    )


def _refuse_sums(cut: Cut) -> None:
    """Refuse to remove entries that are summed later on.

    Raises:
        NothingPrunable: naming the node that does.
    """
    for consumer in cut.coupling.consumers:
        if cut.positions(consumer.tensor, consumer.axis) is not None:
            raise NothingPrunable(
                f"{consumer.node!r} is computed from all entries of {consumer.tensor!r} "
                "together; it would change if some were removed"
            )


def _kept_along(cut: Cut, name: str) -> dict[int, NDArray[np.int64]]:
    """Positions that stay along every axis of an output that loses some.

    Raises:
        NothingPrunable: when they differ from row to row.
    """
    kept_along = {}
    for axis in range(len(cut.coupling.tensors[name].shape)) if cut.touches(name) else ():
        kept = common_positions(cut, name, axis)
        if kept is not None:
            kept_along[axis] = kept
    return kept_along


def _taken(value: Any, axes: Mapping[int, NDArray[np.int64]]) -> Any:
    for axis, kept in axes.items():
        value = np.take(value, kept, axis)
    return value


class _Refusal(Exception):
    """Entries of an axis cannot be removed; the text says why."""


def _removable_units(
    coupling: Coupling, name: str, axis: int, removed: NDArray[np.int64]
) -> list[int]:
    """Units of the entries that are removed; none where no weight is known that makes them.

    Raises:
        _Refusal: when they cannot be removed.
    """
    atoms = _atoms_at(coupling, name, axis, removed)
    frozen = atoms[coupling.unit_of[atoms] == 0]
    if len(frozen):
        reason = coupling.relations.reason(int(frozen[0]))
        raise _Refusal(f"{reason.text} (at {reason.node})" if reason else "they are fixed")
    size = coupling.tensors[name].shape[axis] if name in coupling.tensors else 0
    for refused in find_refusals(coupling) if not len(atoms) else ():
        if coupling.tensors[refused.tensor].shape[refused.dimension] == size:
            raise _Refusal(f"{refused.axis} cannot be cut: {refused.reason} (at {refused.node})")
    return _units(coupling, atoms)


def _atoms_at(
    coupling: Coupling, name: str, axis: int, positions: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Atoms at some positions of an axis, ascending, each once."""
    labels = coupling.tensors.get(name)
    atoms = [
        label.atoms.take(positions, axis=label.axes.index(axis)).reshape(-1)
        for label in (labels.axis_labels if labels is not None else ())
        if axis in label.axes
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *atoms]))


def _units(coupling: Coupling, atoms: NDArray[np.int64]) -> list[int]:
    return [int(unit) for unit in np.unique(coupling.unit_of[atoms])]


def _closed(coupling: Coupling, seeds: Sequence[int], held: Sequence[int]) -> list[int]:
    """All units that are removed with the seeds.

    Raises:
        NothingPrunable: when a kept unit would have to be removed.
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
    removed = np.zeros(relations.count, bool)
    cost = np.ones(relations.count)
    closure = close(constraints, constraints.by_unit(), removed, seeds, cost)
    if closure is None or set(closure) & set(held):
        raise NothingPrunable(
            "the entries to remove share weights with entries that stay; they cannot be cut"
        )
    return closure
