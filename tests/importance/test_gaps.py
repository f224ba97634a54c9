"""Readers whose part in an error curve is an estimate are named with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.oracle import parse
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.coupling.analysis import analyse
from onnxprune.importance.gaps import estimated_readers
from onnxprune.importance.survey import SurveySettings
from onnxprune.model.load import load

HEAD = '<ir_version: 10, opset_import: ["": 17]>'
SHAPES = {"a": (6, 8), "b": (8, 6), "stack": (3, 8, 6), "half": (4, 6)}


def gaps(
    body: str, x: str = "N, 6", settings: SurveySettings | None = None, **more: NDArray[Any]
) -> dict[str, str]:
    rng = np.random.default_rng(0)
    used = {name: shape for name, shape in SHAPES.items() if f" {name})" in body}
    weights: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in used.items()
    }
    proto = parse(f"{HEAD} g (float[{x}] x) => (float[] y) {{ {body} }}", weights | more)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    analysis = analyse(load(proto).model, RunContext())
    return estimated_readers(analysis, analysis.groups, settings)


START = "h = MatMul(x, a) r = Relu(h) "


def test_a_plain_layer_is_no_gap() -> None:
    assert gaps(START + "y = MatMul(r, b)") == {}


@pytest.mark.parametrize(
    ("body", "x", "reason"),
    [
        ("y = MatMul(r, stack)", "N, 3, 4, 6", "a stack of matrices"),
        ("t = Reshape(r, two) y = MatMul(t, half)", "N, 6", "rows differ"),
        ("t = Identity(r) y = MatMul(t, b)", "", ""),
    ],
)
def test_readers_that_are_no_regression_of_the_group(body: str, x: str, reason: str) -> None:
    more = {"two": np.array([0, 2, 4])} if "two" in body else {}
    found = gaps(START + body, x or "N, 6", **more)
    assert reason in found["y"] if reason else not found


def test_a_reader_that_is_too_wide() -> None:
    found = gaps(START + "y = MatMul(r, b)", settings=SurveySettings(largest=4))
    assert found == {"y": "8 unknowns are more than 4"}


def test_a_recurrent_reader() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (1, 15, 8), "s": (1, 15, 5)}
    more = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    body = START + "y, _ = GRU<hidden_size = 5>(r, w, s)"
    assert gaps(body, "7, N, 6", **more)["y"] == "GRU is no linear layer by itself"
