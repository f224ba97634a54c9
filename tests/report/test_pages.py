"""Pages stand alone, say everything, and believe no name."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import pages
from helpers.pages import HOSTILE, Page
from helpers.paths import MODELS

import onnxprune
from onnxprune.pruning.plan import Plan, PlannedStep
from onnxprune.report.records import PipelineRecord, StepReport
from onnxprune.report.run_page import run_page

ALL = {
    "run": lambda: pages.report().to_html(command=["onnxprune", "prune", "a b.onnx"]),
    "pipeline": lambda: pages.pipeline().to_html(command=["onnxprune", "prune", "a b.onnx"]),
    "sweep": lambda: pages.sweep().to_html(),
    "sensitivity": lambda: pages.sensitivity().to_html(HOSTILE),
}


@pytest.mark.parametrize("kind", ALL)
def test_nothing_comes_from_elsewhere(kind: str) -> None:
    page = Page(ALL[kind]())
    assert page.count("link") == page.count("img") == page.count("iframe") == 0
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert not (attributes.get("href") or "#").startswith(("http", "//")), tag
    style = ALL[kind]().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


@pytest.mark.parametrize("kind", ALL)
def test_names_cannot_break_out(kind: str) -> None:
    text = ALL[kind]()
    page = Page(text)
    assert page.count("script") == 1
    assert not any(name.startswith("on") for _, given in page.elements for name in given)
    assert "<script>document.title" in page.text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize("kind", ALL)
def test_only_the_script_it_was_written_with_may_run(kind: str) -> None:
    text = ALL[kind]()
    policies = [one.get("content") or "" for tag, one in Page(text).elements if tag == "meta"]
    (policy,) = (one for one in policies if "default-src 'none'" in one)
    script = text.rpartition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_run_says_everything(tmp_path: Path) -> None:
    model = tmp_path / "small.onnx"
    model.write_bytes(b"a model")
    text = pages.report().to_html(command=["onnxprune", "prune", "a b.onnx"], model_file=model)
    page = Page(text)
    for words in (
        "accuracy 98.9 original 99.1; 450 samples, held out",
        "MACs 50.0 %",
        "75.0 % to 85.0 %, 95 % interval",
        "Certificate holds. The cut and masked model agree within 1e-07",
        "on 2 inputs that react to what was removed",
        "onnx.checker accepts the file",
        "20 % 10 %",
        "too many unknowns",
        "stream 0.02",
        "root could not be built",
        "41 3 4 0.5",
        "0.25, 2",
        "1.50 x with blocks of 16",
        "onnxprune prune 'a b.onnx'",
        "sha256 " + "ab" * 32,
        "sha256 " + hashlib.sha256(b"a model").hexdigest(),
        "seed 7",
        "target macs=0.5",
        "steps 1",
    ):
        assert words in page.text
    assert {"group-1", "group-2", "group-3"} <= {one.get("id") for _, one in page.elements}


def test_what_is_not_known_is_left_out() -> None:
    bare = pages.report(
        outputs=(), latency=None, quality=None, repairs=(), trials={}, refused=(), dropped={},
        note="", padding={}, groups=(), provenance=None, inexact=(),
    )  # fmt: skip
    page = Page(bare.to_html())
    ids = {one["id"] for tag, one in page.elements if tag == "h2"}
    assert ids == {"costs", "groups", "origin"}


def test_a_model_of_500_groups_stays_below_3_megabytes() -> None:
    text = pages.report(500).to_html()
    assert Page(text).count("tr") > 500
    assert len(text.encode()) < 3_000_000


def test_a_sweep_shows_points_baselines_and_what_is_out_of_reach() -> None:
    page = Page(pages.sweep().to_html())
    for words in ("macs=0.8 onnxprune", "macs=0.5 random", "macs=0.01 unreachable", "random"):
        assert words in page.text
    # four costs by two measures, of one line each and its baseline
    assert page.count("svg") == 8
    alone = Page(pages.sweep(baselines=False).to_html())
    assert "random" not in alone.text


def test_a_sweep_with_labels_shows_quality_beside_agreement() -> None:
    plain = pages.sweep(baselines=False)
    quality = {"measure": "accuracy", "original": 97.0, "result": 93.2, "samples": 250}
    points = tuple(replace(one, quality=quality if one.done else None) for one in plain.points)
    study = replace(plain.study, options={**plain.study.options, "labels": "ef" * 32})
    page = Page(replace(plain, points=points, study=study).to_html())
    for words in ("Accuracy by MACs", "accuracy same answer as the original", "93.2 %", "efefef"):
        assert words in page.text
    assert "Same answer as the original by MACs" not in page.text
    assert page.count("svg") == 8


def test_a_heat_map_is_the_stronger_the_worse() -> None:
    page = Page(pages.sensitivity().to_html())
    shares = [
        float((one["style"] or "").removeprefix("--share:"))
        for tag, one in page.elements
        if tag == "td" and one.get("class") == "warmth"
    ]
    # "second" comes first: without limit, then the worst that is finite; the least is colourless
    assert shares == [1.0, 1.0, 0.0, pytest.approx(0.5, abs=1e-3)]
    assert "infinite" in page.text
    assert "waiting" in page.text


def test_a_real_run_has_curves_and_the_samples_that_moved_most(tmp_path: Path) -> None:
    result = onnxprune.prune(
        MODELS / "digits_mlp.onnx",
        calibration=MODELS / "digits_mlp_calibration.npz",
        target={"macs": 0.5},
        measure_latency=False,
    )
    for group in result.report.groups:
        assert group.curve is not None
        assert group.curve.kept[0] == group.size
        assert group.curve.error[0] == 0
        assert min(group.curve.error) <= group.curve.chosen <= max(group.curve.error)
    assert any(one.kept < one.size for one in result.report.groups)
    assert any(one.worst for one in result.report.outputs)
    result.save_report(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    classes = [given.get("class") for tag, given in page.elements if tag == "svg"]
    assert classes.count("spark") == classes.count("chart") == len(result.report.groups)


def test_a_report_is_never_written_over_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    result = onnxprune.prune(model, target={"params": 0.8}, measure_latency=False)
    with pytest.raises(onnxprune.InputError, match="would overwrite the input"):
        result.save_report(model)


def test_a_pipeline_says_what_every_pass_did_and_how_to_repeat_it(tmp_path: Path) -> None:
    model = tmp_path / "small.onnx"
    model.write_bytes(b"a model")
    text = pages.pipeline().to_html(command=["onnxprune", "prune", "a b.onnx"], model_file=model)
    page = Page(text)
    for words in (
        "50.0 %",
        "the worst of all outputs",
        "target macs=0.5",
        "kept 0, 1, 2, 3,",
        "(100 in all)",
        "certificate (2)",
        "Changes inputs or outputs: later passes",
        "The model was not changed",
        "onnxprune prune 'a b.onnx'",
        "passes:",
        "- quantize",
        hashlib.sha256(b"a model").hexdigest(),
        f"Files beside the model: {tmp_path}/small.tokens.json",
    ):
        assert words in page.text, words
    assert page.count("svg") == 2


def test_a_pipeline_that_is_too_long_is_left_to_the_plan() -> None:
    step = StepReport("keep-tokens", {"keep": list(range(20_000))}, 0.1, True, pages.AFTER)
    plan = Plan({}, steps=(PlannedStep(step.name, step.options),))
    text = pages.pipeline(steps=(step,), plan=plan).to_html()
    assert "--plan FILE writes it in full" in Page(text).text
    assert len(text) < 100_000


def test_a_pipeline_of_objects_says_why_it_cannot_be_repeated() -> None:
    plan = Plan({}, steps=(PlannedStep("Mine", object_given=True),))
    page = Page(pages.pipeline(plan=plan).to_html())
    assert "the pass Mine was given as an object" in page.text
    assert "passes:" not in page.text


def test_a_pruning_within_a_pipeline_is_shown_in_full_and_ids_are_unique() -> None:
    step = StepReport("prune", {}, 1.0, True, pages.AFTER, report=pages.report())
    page = Page(pages.pipeline(steps=(step, step)).to_html())
    ids = [given["id"] for _, given in page.elements if given.get("id")]
    assert len(ids) == len(set(ids))
    for section in ("certificate", "groups", "curves", "layers", "allocation", "refusals"):
        assert {f"pass-1-{section}", f"pass-2-{section}"} <= set(ids)
    assert {"pass-1-group-1", "pass-2-group-3"} <= set(ids)
    assert page.text.count("Certificate holds.") == 2


def test_a_pipeline_of_one_pruning_is_the_page_of_that_pruning() -> None:
    report = pages.report()
    step = StepReport(
        "prune", {}, 1.5, True, report.result, report.outputs, report.latency, report=report
    )
    record = PipelineRecord(report.original, (step,), report.provenance)
    assert run_page(record) == report.to_html()
