"""Pipelines from YAML, JSON and Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.errors import InputError
from onnxprune.passes.pipeline.steps import parse_value, read_steps

YAML = """
passes:
  - remove-lossless
  - prune: {target: {macs: 0.5}}
  - sparsify-weights:
      pattern: 2:4
      criterion: magnitude
  - quantize:
"""


def written(folder: Path, text: str, name: str = "pipeline.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(source: Any) -> str:
    with pytest.raises(InputError) as error:
        read_steps(source)
    return str(error.value)


def test_yaml(tmp_path: Path) -> None:
    steps = read_steps(written(tmp_path, YAML))
    assert [(one.name, dict(one.options)) for one in steps] == [
        ("remove-lossless", {}),
        ("prune", {"target": {"macs": 0.5}}),
        ("sparsify-weights", {"pattern": "2:4", "criterion": "magnitude"}),
        ("quantize", {}),
    ]


def test_json_and_python_say_the_same(tmp_path: Path) -> None:
    passes = ["remove-lossless", {"prune": {"target": {"macs": 0.5}}}]
    path = written(tmp_path, json.dumps({"passes": passes}), "pipeline.json")
    assert [(one.name, one.options) for one in read_steps(path)] == [
        (one.name, one.options) for one in read_steps(passes)
    ]


def test_passes_themselves() -> None:
    (step,) = read_steps([RemoveUnusedNodesPass()])
    assert step.name == "RemoveUnusedNodesPass"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("16x16", "16x16"),
        ("3,7,9", "3,7,9"),
        ("yes", "yes"),
        ("true", True),
        ("1e-3", 0.001),
        ("0.5", 0.5),
        ("12", 12),
        ("", None),
        ("[a, b]", ["a", "b"]),
        ("{macs: 0.5}", {"macs": 0.5}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("passes: [prune", "is no YAML"),
        ("passes:\n  - prune: {steps: 1, steps: 2}", "the key 'steps' stands there twice"),
        ("pases: []", "unknown key 'pases'; did you mean 'passes'?"),
        ("passes: prune", "passes is a list"),
        ("passes: []", "names no pass"),
        ("passes: [3]", "pass 1 (int): pass 'int' is int; a pass is"),
        ("passes: [{prune: {}, quantize: {}}]", "one name with its options"),
        ("passes: [{prune: fast}]", "options are name: value"),
        ("passes: [prun]", "pass 1: unknown pass 'prun'; did you mean 'prune'?"),
        ("passes: [prune, {prune: {targt: 1}}]", "pass 2 (prune): unknown option 'targt'"),
        ("passes: [!!python/object/apply:os.getcwd []]", "is no YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert words in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
