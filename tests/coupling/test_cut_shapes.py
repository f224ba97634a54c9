"""Shapes of all tensors after a cut are those that each tensor has for itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.oracle import Traced, parse, random_removal, traced
from helpers.paths import MODELS

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.cut_shapes import CutShapes

NAMES = ["digits_mlp", "digits_resnet_bn", "digits_transformer"]


def each_for_itself(subject: Traced, name: str, removed: list[int]) -> tuple[int, ...]:
    try:
        return Cut(subject.coupling, removed).shape(name)
    except CutError:
        return subject.coupling.facts.first.shapes[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("everywhere", [False, True])
def test_every_tensor_has_the_shape_that_the_cut_gives_it(name: str, everywhere: bool) -> None:
    subject = traced(onnx.load(MODELS / f"{name}.onnx"))
    shapes = CutShapes(subject.coupling)
    units = np.unique(subject.coupling.unit_of)[1:].tolist()
    ragged = np.random.default_rng(0).choice(units, len(units) // 3, replace=False).tolist()
    for removed in ([], random_removal(subject, 0.5, 0), ragged, units):
        shape_of = shapes.after(removed, everywhere=everywhere)
        for tensor in subject.coupling.facts.first.shapes:
            assert shape_of(tensor) == each_for_itself(subject, tensor, removed), tensor


def test_tensors_that_were_not_observed_have_no_shape() -> None:
    subject = traced(onnx.load(MODELS / "digits_mlp.onnx"))
    with pytest.raises(KeyError):
        CutShapes(subject.coupling).after([])("nothing")


def test_labels_of_equal_content_are_one_label() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2, 4] x) => (float[2, 3] y)
        { a = MatMul(x, w) b = Relu(a) c = Mul(b, s) d = Add(c, s) y = MatMul(d, v) }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 8), "s": (8,), "v": (8, 3)}
    subject = traced(
        parse(text, {n: rng.standard_normal(s).astype("f") for n, s in shapes.items()})
    )
    labels_of = CutShapes(subject.coupling).labels_of
    assert {labels_of[name] for name in ("w", "s", "a", "b", "c", "d")} == {(0,)}
