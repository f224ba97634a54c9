"""Targets in a pipeline: what is to remain of the model that the pipeline was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.solving import images, mlp

import onnxprune
from onnxprune.cost.latency.measure import Latency
from onnxprune.errors import InputError, TargetUnreachable
from onnxprune.options import check_targets
from onnxprune.passes.pipeline import run as stage
from onnxprune.passes.pipeline.options import OF, options_of, relative_target, with_of
from onnxprune.passes.pipeline.steps import read_steps

X = images(48, 8)


def ran(*passes: Any) -> onnxprune.PipelineResult:
    return onnxprune.run_pipeline(
        mlp(), list(passes), calibration={"x": X}, threads=1, measure_latency=False, force=True
    )


def shares(result: onnxprune.PipelineResult) -> list[float]:
    return [one.sizes.macs / result.original.macs for one in result.steps]


def prune(macs: float, **options: Any) -> dict[str, Any]:
    return {"prune": {"target": {"macs": macs}, **options}}


def test_a_target_refers_to_the_original() -> None:
    result = ran(prune(0.8), prune(0.6))
    first, second = shares(result)
    assert first <= 0.8
    # it is as close to its target as the first: nothing is cut twice
    assert 0.5 < second <= 0.6
    assert not result.steps[0].notes
    assert result.steps[1].notes == (
        f"macs=0.6 of the original is {0.6 / first:.4g} of the model it was given",
    )


def test_or_to_the_model_that_the_pass_is_given() -> None:
    first, second = shares(ran(prune(0.8), prune(0.6, of="current")))
    assert second <= 0.6 * first


def test_a_target_that_is_met_leaves_nothing_to_do() -> None:
    result = ran(prune(0.5), prune(0.7))
    assert not result.steps[1].modified
    assert result.steps[1].notes == ("macs=0.7 of the original was met before",)
    assert result.steps[1].sizes == result.steps[0].sizes


def test_a_target_out_of_reach_is_told_in_both_ways() -> None:
    words = r"pass 2 \(prune\): .*cannot be reached.*\(macs=0.01 of the original is 0.0.* given\)"
    with pytest.raises(TargetUnreachable, match=words):
        ran(prune(0.8), prune(0.01))


@pytest.mark.parametrize(("interval", "asked"), [((0.79, 0.81), 0.5), ((0.1, 8.0), 0.4)])
def test_latency_refers_to_the_original_where_it_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: tuple[float, float], asked: float
) -> None:
    measured = Latency(1e-3, 8e-4, 0.8, *interval, 9, interval)
    monkeypatch.setattr(stage, "measure_pair", lambda *given: measured)
    path = tmp_path / "mine.py"
    path.write_text(
        "def shrink(model, target: dict[str, float] | None = None):\n"
        "    model.doc_string = str(target)\n"
    )
    result = ran(prune(0.8), {f"{path}:shrink": {"target": {"latency": 0.4}}})
    assert result.model.doc_string == str({"latency": asked})
    told = "cannot be told from here" in result.steps[1].notes[0]
    assert told == (asked == 0.4)


@pytest.mark.parametrize(
    ("target", "given", "note"),
    [
        ({"macs": 0.4}, {"macs": 0.5}, "macs=0.4 of the original is 0.5 of"),
        ({"macs": 0.9, "params": 0.5}, {"params": 0.5}, "macs=0.9 of the original was met before"),
        ({"channels": 0.5}, {"channels": 0.5}, ""),
        ({"params": 1.0}, {"params": 1.0}, ""),
        ({"latency": 0.5}, {"latency": 0.5}, ""),
    ],
)
def test_fractions(target: dict[str, float], given: dict[str, float], note: str) -> None:
    relative, words = relative_target(target, {"macs": 0.8, "params": 1.0, "channels": 0.5})
    assert relative == given
    assert words.startswith(note)
    assert bool(words) == bool(note)


def test_passes_with_a_mapping_of_targets_have_the_option() -> None:
    def with_target(model: Any, target: Mapping[str, float] | None = None) -> None: ...
    def with_word(model: Any, target: str = "all") -> None: ...

    target, of = with_of(options_of(with_target, skip=1))
    assert (target.check, of) == (check_targets, OF)
    assert OF not in with_of(options_of(with_word, skip=1))


def test_mistakes_are_found_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"pass 2 \(prune\): unknown target 'mac'; did you mean"):
        read_steps(["remove-lossless", {"prune": {"target": {"mac": 0.5}}}])
    with pytest.raises(InputError, match=r"pass 1 \(prune\): target macs=2.* out of range"):
        read_steps([prune(2)])
    with pytest.raises(InputError, match="of must be one of original, current, not 'curent'"):
        read_steps([prune(0.5, of="curent")])
