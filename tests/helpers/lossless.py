"""How the tests remove without loss: the pass, then mask, slice, compare with the original."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from helpers.oracle import BATCHES, ONE_THREAD, difference, feed, outputs, traced
from onnxprune.calibration.moments import collect
from onnxprune.calibration.samples import read_samples
from onnxprune.compensation.lossless.remove import RedundantUnits, remove_lossless
from onnxprune.coupling.analysis import tap_of
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.model.inputs import input_specs
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed, zero_removed

TOLERANCE = 1e-5


def without(
    proto: onnx.ModelProto, samples: dict[str, NDArray[Any]] | None = None
) -> tuple[dict[str, RedundantUnits], onnx.ModelProto]:
    """Run the pass, cut, and check all that is promised of it; returns what went, and the rest.

    With samples, what never changes in them counts as constant, and outputs agree on them.
    """
    subject = traced(proto)
    before = ir.to_proto(subject.model).SerializeToString(deterministic=True)
    full = EditableModel(subject.model.clone(), subject.coupling)
    more: dict[str, Any] = {}
    if samples is not None:
        taps = [tap_of(subject.coupling, r) for group in subject.groups for r in group.readings]
        read = read_samples(samples, input_specs(subject.model))
        moments = collect(subject.model, taps, read, ONE_THREAD)
        more = {"feeds": [samples], "moments": moments}
    removal = remove_lossless(full, subject.groups, ONE_THREAD, **more)
    assert not removal.dropped, "a wrong proof"
    assert all(removal.units.values())
    if not removal.groups:
        assert ir.to_proto(full.model).SerializeToString(deterministic=True) == before
        return {}, proto
    cut = Cut(full.coupling, Removal(removal.units).removed_units())
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    slice_removed(sliced, cut)
    result, wanted = ir.to_proto(sliced), ir.to_proto(masked)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(proto.graph.input)
    assert list(result.graph.output) == list(proto.graph.output)
    for batch in BATCHES:
        inputs = samples if samples is not None else feed(proto, batch, seed=batch)
        original = outputs(proto, inputs)
        assert difference(original, outputs(wanted, inputs)) < TOLERANCE
        assert difference(original, outputs(result, inputs)) < TOLERANCE
    again = traced(result)
    rest = EditableModel(again.model, again.coupling)
    assert not remove_lossless(rest, again.groups, ONE_THREAD).groups
    return dict(removal.groups), result


def merged(found: dict[str, RedundantUnits]) -> set[frozenset[int]]:
    """Sets of units that became one."""
    together: dict[tuple[str, int], set[int]] = {}
    for name, one in found.items():
        for unit, kept in one.merged.items():
            together.setdefault((name, kept), {kept}).add(unit)
    return {frozenset(one) for one in together.values()}
