"""How the tests align components: the pass, and a check that the model says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from helpers.oracle import BATCHES, ONE_THREAD, Traced, difference, feed, outputs, parse, traced
from onnxprune.calibration.context import RunContext
from onnxprune.compensation.components.align import Alignment, align_components
from onnxprune.surgery.editable_model import EditableModel

Weights = dict[str, NDArray[Any]]
Feeds = list[dict[str, NDArray[Any]]]
CONTEXT = RunContext(runtime=ONE_THREAD)


def weights(**shapes: tuple[int, ...]) -> Weights:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def batches(proto: onnx.ModelProto, count: int = 4) -> Feeds:
    return [dict(feed(proto, 8, seed=seed)) for seed in range(count)]


def align(proto: onnx.ModelProto) -> tuple[Alignment, EditableModel, Traced, Feeds]:
    """Align, and check that it changes no output."""
    subject, feeds = traced(proto), batches(proto)
    full = EditableModel(subject.model.clone(), subject.coupling)
    alignment = align_components(full, subject.groups, feeds, CONTEXT)
    assert not alignment.dropped
    for group in alignment.sets.values():
        for one in group:
            assert (np.diff(one.energies) <= 0).all()
    result = ir.to_proto(full.model)
    onnx.checker.check_model(result, full_check=True)
    for batch in BATCHES:
        inputs = feed(proto, batch, seed=batch)
        assert difference(outputs(proto, inputs), outputs(result, inputs)) < 1e-5
    return alignment, full, subject, feeds


def sizes(alignment: Alignment) -> list[tuple[int, bool]]:
    """Units of each set, and whether a product reads it."""
    return sorted((len(one.units), one.product) for g in alignment.sets.values() for one in g)


def fetch(model: ir.Model, names: list[str], feeds: Feeds) -> list[dict[str, NDArray[Any]]]:
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    known = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(made[name] for name in names if name not in known)
    return [outputs(ir.to_proto(copy), one) for one in feeds]


def chain(text: str, values: Weights) -> onnx.ModelProto:
    return parse(f'<ir_version: 8, opset_import: ["": 18]> g {text}', dict(values))
