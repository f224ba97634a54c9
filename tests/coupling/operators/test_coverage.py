"""No rule without a specification, and what has no rule is refused."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.oracle import parse, traced
from helpers.rules import Case, check, runnable

from onnxprune.coupling.operators import RULES

TABLES = [
    runpy.run_path(str(path))
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path != Path(__file__)
]
# Known to onnxruntime in the default domain, but to no version of the ONNX standard.
OWN_TESTS = {"SimplifiedLayerNormalization"}


def test_every_rule_has_a_graph_that_exercises_it() -> None:
    specified = {case.op for table in TABLES for case in table["CASES"]}
    assert {f"{domain}.{op}".lstrip(".") for domain, op in RULES} - specified == OWN_TESTS


def test_every_graph_contains_the_op_it_is_about() -> None:
    for table in TABLES:
        for case in table["CASES"]:
            graph = case.proto().graph
            assert case.op in {f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.node}


def test_cases_that_do_not_run_here_are_few_and_wait_for_a_newer_onnxruntime() -> None:
    cases = [case for table in TABLES for case in table["CASES"]]
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    assert len(cases) - len(runnable(cases)) <= (0 if version >= (1, 31) else 5)


REFUSED = [
    Case(
        "Det",
        "h = MatMul(x, a) r = Reshape(h, s) d = Det(r) u = Unsqueeze(d, i) t = Mul(h, u) "
        "y = MatMul(t, b)",
        {"a": (4, 4), "b": (4, 3)},
        refused="there is no coupling rule for Det",
        values={"s": np.array([0, 2, 2]), "i": np.array([1])},
    )
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_not_understood_is_refused(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(("last", "groups"), [(8, 0), (2, 1)])
def test_simplified_layer_normalization_is_a_layer_normalization(last: int, groups: int) -> None:
    subject = traced(
        parse(
            '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y) '
            "{ h = MatMul(x, a) r = Reshape(h, s) u = SimplifiedLayerNormalization(r, g) "
            "t = Reshape(u, z) y = MatMul(t, b) }",
            {name: np.ones(shape, np.float32) for name, shape in (("a", (4, 8)), ("b", (8, 3)))}
            | {"g": np.ones(last, np.float32), "z": np.array([0, 8]), "s": np.array([0, -1, last])},
        )
    )
    assert len(subject.groups) == groups
