"""Two results belong to one study when model, samples, options and libraries are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.calibration.samples import read_samples
from onnxprune.errors import InputError
from onnxprune.model.inputs import InputSpec
from onnxprune.options import PruneOptions
from onnxprune.pruning.studies.study import read_study, samples_digest, study_of, written
from onnxprune.report.records import Study

SPECS = (InputSpec("x", np.dtype(np.float32), ("n", 3)),)
STUDY = Study("model", "samples", {"seed": 0, "keep": [0.5]}, {"onnxprune": "1"})


def digest(values: NDArray[Any], specs: tuple[InputSpec, ...] = SPECS) -> str:
    return samples_digest(read_samples({specs[0].name: values}, specs))


def rows(count: int = 70) -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)


def test_equal_samples_are_the_same_wherever_they_come_from(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=rows())
    assert samples_digest(read_samples(tmp_path / "s.npz", SPECS)) == digest(rows())


@pytest.mark.parametrize("change", ["value", "order", "number", "name"])
def test_other_samples_are_told_apart(change: str) -> None:
    other, specs = rows(), SPECS
    if change == "value":
        other[69, 2] += 1e-6
    elif change == "order":
        other = other[::-1].copy()
    elif change == "number":
        other = other[:-1]
    else:
        specs = (replace(SPECS[0], name="z"),)
    assert digest(other, specs) != digest(rows())


def test_strings_are_compared_by_value() -> None:
    specs = (InputSpec("x", np.dtype(object), ("n",)),)
    # two objects for the same text
    first, second = (np.array(["".join(["a", "b"]), "c"], object) for _ in range(2))
    assert digest(first, specs) == digest(second, specs)
    assert digest(np.array(["ab", "d"], object), specs) != digest(first, specs)


def test_the_target_is_no_part_of_a_study() -> None:
    samples = read_samples({"x": rows()}, SPECS)
    first, second = (
        study_of("m", samples, PruneOptions(target={"macs": one})) for one in (0.5, 0.7)
    )
    assert first == second
    assert first.differences(study_of("m", samples, PruneOptions(seed=1))) == ["seed"]
    assert first.differences(study_of("m", samples, PruneOptions(), keep=[0.5])) == ["keep"]
    labels = np.arange(70)
    labelled = study_of("m", samples, PruneOptions(), labels)
    assert labelled == study_of("m", samples, PruneOptions(), labels.copy())
    assert first.differences(labelled) == ["labels"]
    assert labelled.differences(study_of("m", samples, PruneOptions(), labels[::-1])) == ["labels"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, []),
        ({"model": "other"}, ["model"]),
        ({"samples": "other"}, ["samples"]),
        ({"options": {"seed": 1, "keep": [0.5]}}, ["seed"]),
        ({"options": {"seed": 0}}, ["keep"]),
        ({"options": {"seed": 0, "keep": [0.5], "new": None, "more": 1}}, ["more"]),
        ({"versions": {"onnxprune": "2"}}, ["onnxprune"]),
    ],
)
def test_differences_are_named(change: dict[str, Any], named: list[str]) -> None:
    other = replace(STUDY, **change)
    assert STUDY.differences(other) == other.differences(STUDY) == named


def test_files_say_what_was_studied(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(written(STUDY, "a-format", {"rows": [1]})))
    study, data = read_study(path, "a-format")
    assert study == STUDY
    assert data["rows"] == [1]
    with pytest.raises(InputError, match=r"s\.json: is not a file of the format b-format"):
        read_study(path, "b-format")
    path.write_text(json.dumps({"format": "a-format", "version": 99}))
    with pytest.raises(InputError, match="has version 99, expected 1"):
        read_study(path, "a-format")
