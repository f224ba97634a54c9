"""Sizes, indices and amounts of ops that move data: computed for the pruned shape.

Each function computes what a node has to say for its output to have the pruned shape, and changes
the node only where it says something else.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.coupling.cut import CutError
from onnxprune.model.bodies import node_id
from onnxprune.surgery.operators.site import Site, SizeTable

_BEFORE_THE_AXIS = -(2**31) + 1


def _target(site: Site) -> None:
    """Reshape, Expand, ConstantOfShape, Resize sizes: the slot must lead to the pruned shape."""
    slot = {"ConstantOfShape": 0, "Resize": 3}.get(site.node.op_type, 1)
    if not site.name(slot):
        return
    wanted = [site.cut.shape(site.output_name(), second=which) for which in (False, True)]
    known = [site.integers.get(site.name(slot), second=which) for which in (False, True)]
    given = [value for value in known if value is not None]
    if len(given) < 2:
        if site.cut.touches(site.output_name()):
            _overrule_passed_axes(site, slot, *wanted)
        return
    corrected = [_corrected(site, given[i], wanted[i], second=bool(i)) for i in (0, 1)]
    if all(np.array_equal(c, g) for c, g in zip(corrected, given, strict=True)):
        return
    if site.is_constant(slot):
        if not np.array_equal(corrected[0], corrected[1]):
            raise CutError(site.output_name(), f"{site.name(slot)} cannot express the pruned shape")
        site.editor.set_literal(site.node, slot, corrected[0])
    else:
        site.overrule(slot, corrected[0], corrected[1])


def _overrule_passed_axes(
    site: Site, slot: int, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    """Of a target that depends on data, overrule the axes that are cut, if they are passed on.

    That they always are follows from their own entry and those behind it, if these are known.
    """
    name, source, target = site.output_name(), site.name(0), site.node.inputs[slot]
    rows = {axis: site.cut.positions(name, axis) for axis in range(len(first))}
    changed = {axis: kept for axis, kept in rows.items() if kept is not None}
    sources = [site.cut.positions(source, axis) for axis in range(len(site.shape_of(source)))]
    known = _known_entries(site, target) if target is not None else []
    for axis, kept in changed.items():
        passed = any(other is not None and np.array_equal(kept, other) for other in sources)
        follows = len(known) == len(rows) and all(known[axis:]) and first[axis] == second[axis]
        if site.node.op_type != "Reshape" or not (passed and follows):
            raise CutError(name, f"{site.name(slot)} is only known at run time")
    wrong = np.array([axis in changed for axis in rows])
    site.editor.replace_computed(site.node, slot, np.array(first, np.int64), wrong)


def _known_entries(site: Site, value: ir.Value) -> list[bool]:
    """Which entries of a vector of integers follow from constants and shapes alone."""
    settled = site.integers.get(value.name or "")
    if settled is not None:
        return [True] * settled.size
    node = value.producer()
    if node is not None and node.op_type in ("Cast", "Concat", "Identity") and not node.domain:
        parts = [_known_entries(site, part) for part in node.inputs if part is not None]
        return [entry for part in parts for entry in part]
    observed = site.cut.coupling.facts.first.integers.get(value.name or "")
    return [False] * (observed.size if observed is not None else 0)


def _repeats(site: Site) -> None:
    """Tile: how often an axis is repeated, for axes that grew from one entry."""
    if not site.cut.touches(site.output_name()):
        return
    wanted = [_quotient(site, second) for second in (False, True)]
    given = [site.integers.get(site.name(1), second=which) for which in (False, True)]
    if all(np.array_equal(w, g) for w, g in zip(wanted, given, strict=True) if g is not None):
        return
    if site.is_constant(1):
        site.editor.set_literal(site.node, 1, wanted[0])
    else:
        site.overrule(1, wanted[0], wanted[1])


def _quotient(site: Site, second: bool) -> NDArray[np.int64]:
    after, before = (
        np.array(site.cut.shape(name, second=second), np.int64)
        for name in (site.output_name(), site.name(0))
    )
    return after // np.maximum(before, 1)


def _corrected(
    site: Site, given: NDArray[np.int64], wanted: tuple[int, ...], second: bool
) -> NDArray[np.int64]:
    """Change the entries of a shape that are wrong; -1 and a still correct 0 stay."""
    result = np.array(given)
    if site.node.op_type == "Resize":
        before = site.shape_of(site.output_name())
        axes = site.attribute("axes") or range(len(before))
        for i, axis in enumerate(axes):
            result[i] = result[i] if wanted[axis] == before[axis] else wanted[axis]
        return result
    source: tuple[int, ...] = ()
    if site.node.op_type in ("Reshape", "Expand"):
        source = site.cut.shape(site.name(0), second=second)
    copies = site.node.op_type == "Reshape" and not site.attribute("allowzero", 0)
    offset = len(wanted) - len(given)
    padded = (1,) * (len(wanted) - len(source)) + source
    for i, entry in enumerate(given.tolist()):
        extent = wanted[i + offset]
        if entry == -1 and site.node.op_type == "Reshape":
            continue
        if entry == 0 and copies and i < len(source) and source[i] == extent:
            continue
        if entry == 1 and site.node.op_type == "Expand" and padded[i + offset] == extent:
            continue
        result[i] = extent
    return result


def _split(site: Site) -> None:
    axis = site.axis(0)
    names = [value.name or "" for value in site.node.outputs]
    if not all(names):
        if site.cut.touches(site.name(0)):
            raise CutError(site.name(0), "a Split with an unused part")
        return
    wanted = np.array([site.cut.shape(name)[axis] for name in names], np.int64)
    given = site.vector(1, "split")
    if given is None:
        extent = int(wanted.sum())
        chunk = -(-extent // len(names))
        implied = [min(chunk, extent - chunk * i) for i in range(len(names))]
        even = site.opset >= 18 or extent % len(names) == 0
        if even and implied == wanted.tolist():
            return
        site.node.attributes.pop("num_outputs", None)
        if site.opset < 13:
            site.put_attribute("split", wanted.tolist())
        else:
            site.editor.set_literal(site.node, 1, wanted)
    elif not np.array_equal(given, wanted):
        site.put(1, "split", wanted)


def _slice(site: Site) -> None:
    name = site.name(0)
    if not site.cut.touches(name):
        return
    rank = len(site.shape_of(name))
    slots = ((1, "starts"), (2, "ends"))
    old = [site.old_vector(slot, key) for slot, key in slots]
    new = [value for slot, key in slots if (value := site.vector(slot, key)) is not None]
    axes = site.vector(3, "axes")
    axes = np.arange(len(old[0])) if axes is None else axes
    steps = site.vector(4, "steps")
    steps = np.ones(len(old[0]), np.int64) if steps is None else steps
    starts, ends = (np.array(value) for value in new)
    taken: dict[int, NDArray[np.int64]] = {}
    for i, axis in enumerate((axes % rank).tolist()):
        step = int(steps[i])
        bounds = _bounds(int(old[0][i]), int(old[1][i]), step)
        taken[axis] = index = np.arange(site.shape_of(name)[axis])[bounds]
        rows = site.cut.positions(name, axis, taken)
        if rows is None:
            continue
        wanted = _ranks(site, rows, index)
        extent = int(rows[0].sum())
        if np.array_equal(np.arange(extent)[_bounds(int(starts[i]), int(ends[i]), step)], wanted):
            continue
        starts[i], ends[i] = _range_of(site, wanted, step)
    for (slot, key), value, before in zip(slots, (starts, ends), new, strict=True):
        if not np.array_equal(value, before):
            site.put(slot, key, value)


def _bounds(start: int, end: int, step: int) -> slice:
    """ONNX start and end as a Python slice."""
    return slice(start, None if step < 0 and end < -(2**30) else end, step)


def _ranks(site: Site, rows: NDArray[np.bool_], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """New positions of the survivors among old positions, the same for every row."""
    ranks = rows.cumsum(axis=1) - 1
    new: list[NDArray[np.int64]]
    new = [rank[index[row[index]]] for row, rank in zip(rows, ranks, strict=True)]
    if any(not np.array_equal(row, new[0]) for row in new[1:]):
        raise CutError(site.output_name(), f"the rows of {site.name(0)} keep different positions")
    return new[0]


def _range_of(site: Site, wanted: NDArray[np.int64], step: int) -> tuple[int, int]:
    if not len(wanted) or (np.diff(wanted) != step).any():
        raise CutError(site.output_name(), f"what is left of {site.name(0)} is no range")
    end = int(wanted[-1]) + (1 if step > 0 else -1)
    return int(wanted[0]), end if end >= 0 else _BEFORE_THE_AXIS


def _gather(site: Site) -> None:
    """Gather, GatherND: constant indices become ranks among the survivors."""
    name = site.name(0)
    rank = len(site.shape_of(name))
    nested = site.node.op_type == "GatherND"
    axis = 0 if nested else site.get_int("axis", 0) % rank
    rows = site.cut.positions(name, axis)
    if rows is None or node_id(site.node) in site.cut.coupling.renumbered:
        return
    index = site.constant(1)
    if index is None:
        raise site.unknown(site.name(1))
    flat = np.asarray(index, np.int64).reshape(-1) % rows.shape[1]
    wanted = _ranks(site, rows, flat)
    shape = np.shape(index) if len(wanted) == len(flat) else (len(wanted), *np.shape(index)[1:])
    site.editor.set_literal(site.node, 1, wanted.reshape(shape))


def _pad(site: Site) -> None:
    """Pad: amounts along a labelled axis shrink with the entries they add."""
    name = site.output_name()
    if not site.cut.touches(name):
        return
    given = site.vector(1, "pads")
    if given is None:
        return
    rank = len(site.shape_of(name))
    listed = site.vector(3, "axes")
    axes = np.arange(rank) if listed is None else listed % rank
    old = site.old_vector(1, "pads")
    wanted = np.array(given)
    for i, axis in enumerate(axes.tolist()):
        rows = site.cut.positions(name, axis)
        before, after = int(old[i]), int(old[i + len(axes)])
        if rows is None or not (before or after):
            continue
        wanted[i] = rows[0, :before].sum()
        wanted[i + len(axes)] = rows[0, rows.shape[1] - after :].sum()
    if not np.array_equal(wanted, given):
        site.put(1, "pads", wanted)


SIZE_RULES: SizeTable = {
    **{("", op): _target for op in ("Reshape", "Expand", "ConstantOfShape", "Resize")},
    ("", "Tile"): _repeats,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    **{("", op): _gather for op in ("Gather", "GatherND")},
    ("", "Pad"): _pad,
}
