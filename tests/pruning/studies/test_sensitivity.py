"""Sensitivity: each group alone is cut and measured; parts of a study go on and come together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import parse
from helpers.paths import MODELS

import onnxprune
from onnxprune import InputError, NothingPrunable, Sensitivity
from onnxprune.errors import RuntimeFailure
from onnxprune.pruning.studies import sensitivity as sensing
from onnxprune.report.records import GroupCut, GroupSensitivity, Study

THREE_LAYERS = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 6] x) => (float[N, 4] y)
    { a = MatMul(x, w1)
      b = Relu(a)
      c = MatMul(b, w2)
      d = Relu(c)
      e = MatMul(d, w3)
      f = Relu(e)
      y = MatMul(f, w4) }"""
"""Groups w1[1] of 16 units, of which 8 are nought, w2[1] of 12 and w3[1] of 3."""

GROUPS = ("w1[1]", "w2[1]", "w3[1]")


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 16), "w2": (16, 12), "w3": (12, 3), "w4": (3, 4)}
    weights = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    weights["w1"][:, 8:] = 0
    return parse(THREE_LAYERS, weights)


def samples(seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((256, 6)).astype(np.float32)}


def sense(**options: Any) -> Sensitivity:
    return onnxprune.sensitivity(network(), **{"calibration": samples(), "threads": 1} | options)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the groups that are measured from now on."""
    names: list[str] = []
    real = sensing._Trials.of

    def of(self: Any, one: Any, keep: Any) -> Any:
        names.append(one.group.name)
        return real(self, one, keep)

    monkeypatch.setattr(sensing._Trials, "of", of)
    return names


@pytest.mark.parametrize("compensate", ["least-squares", "mean", "none"])
def test_every_group_is_cut_alone_to_every_fraction(compensate: str) -> None:
    found = sense(compensate=compensate)
    assert found.groups == GROUPS
    assert tuple(one.group for one in found.rows) == GROUPS
    assert [one.units for one in found.rows] == [16, 12, 3]
    assert [[cut.keep for cut in one.cuts] for one in found.rows] == [[0.75, 0.5, 0.25]] * 3
    assert [cut.units for cut in found.rows[1].cuts] == [9, 6, 3]
    # of three units one or two can stay: the nearest to the fraction asked for
    assert [cut.units for cut in found.rows[2].cuts] == [2, 1, 1]
    dead, used, _ = found.rows
    divergences = [cut.divergence for cut in used.cuts]
    assert None not in divergences
    assert 0 < divergences[0] < divergences[1] < divergences[2]  # type: ignore[operator]
    # half of the first group's units do nothing
    assert dead.cuts[1].divergence == pytest.approx(0, abs=1e-6)
    assert (dead.cuts[2].divergence or 0) > 1e-4


def test_what_a_cut_saves_is_counted() -> None:
    found = sense()
    used = found.rows[1]
    # a unit of w2[1] has a column of 16 in w2 and a row of 3 in w3
    assert [cut.saved["params"] for cut in used.cuts] == [3 * 19, 6 * 19, 9 * 19]
    rows = samples()["x"][:2].shape[0]
    assert [cut.saved["macs"] for cut in used.cuts] == [rows * n * 19 for n in (3, 6, 9)]
    assert found.costs["params"] == 6 * 16 + 16 * 12 + 12 * 3 + 3 * 4


def test_without_compensation_the_divergence_is_that_of_the_cut_model() -> None:
    """What is measured on masked weights is what the cut model gives."""
    found = sense(compensate="none", criterion="l2", exclude=["w1", "w4"], keep=(0.5,))
    (row,) = found.rows
    cut = onnxprune.prune(
        network(),
        calibration=samples(),
        target={"channels": 0.5},
        compensate="none",
        criterion="l2",
        exclude=["w1", "w4"],
        threads=1,
        measure_latency=False,
        force=True,
    )
    again = onnxprune.sweep(
        network(),
        calibration=samples(),
        targets=[{"channels": 0.5}],
        compensate="none",
        criterion="l2",
        exclude=["w1", "w4"],
        threads=1,
        measure_latency=False,
    )
    assert cut.report.widths == {"w2[1]": (12, 6)}
    assert row.cuts[0].units == 6
    assert row.cuts[0].divergence == pytest.approx(again.points[0].divergence, rel=1e-4)


def test_compensation_makes_groups_less_sensitive() -> None:
    plain, solved = (
        sense(compensate=one, criterion="l2", keep=(0.5,)) for one in ("none", "least-squares")
    )
    assert solved.rows[1].worst < 0.5 * plain.rows[1].worst


def test_the_most_sensitive_group_comes_first() -> None:
    ranked = sense().ranked()
    assert [one.worst for one in ranked] == sorted((one.worst for one in ranked), reverse=True)
    assert ranked[0].worst > ranked[-1].worst


def test_heads_are_cut_to_legal_widths() -> None:
    found = onnxprune.sensitivity(
        MODELS / "digits_transformer.onnx",
        calibration=MODELS / "digits_transformer_calibration.npz",
        keep=(0.5,),
        threads=1,
    )
    heads = [one for one in found.rows if one.kind == "head"]
    assert heads
    assert all(0 < one.cuts[0].units < one.units for one in heads)
    assert all(one.worst > 0 for one in heads)


def test_the_same_study_gives_the_same_figures() -> None:
    assert sense() == sense()


def test_a_group_that_cannot_be_cut_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_analysis: Any, removal: Any, *_: Any) -> None:
        if "w2[1]" in removal.units:
            raise RuntimeFailure("no such kernel")

    monkeypatch.setattr(sensing, "build_plain", refuse)
    found = sense()
    assert [one.reason for one in found.rows] == ["", "no such kernel", ""]
    assert found.rows[1].cuts == ()
    assert found.missing == ()


def test_a_file_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "s.json"
    names = counted(monkeypatch)
    real = sensing._Trials.of

    def interrupted(self: Any, one: Any, keep: Any) -> Any:
        if one.group.name == "w2[1]":
            raise KeyboardInterrupt
        return real(self, one, keep)

    with monkeypatch.context() as patch:
        patch.setattr(sensing._Trials, "of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sense(file=file)
    assert Sensitivity.load(file).missing == ("w2[1]", "w3[1]")
    names.clear()
    found = sense(file=file)
    assert names == ["w2[1]", "w3[1]"]
    assert found == sense() == Sensitivity.load(file)
    names.clear()
    assert sense(file=file) == found
    assert names == []


def test_shards_come_together(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in (1, 2)]
    parts = [sense(shard=(number, 2), file=file) for number, file in enumerate(files, 1)]
    assert [tuple(one.group for one in part.rows) for part in parts] == [
        ("w1[1]", "w3[1]"),
        ("w2[1]",),
    ]
    assert parts[0].missing == ("w2[1]",)
    first, second = map(Sensitivity.load, files)
    assert first.merge(second) == second.merge(first) == sense()


def test_one_file_may_take_one_shard_after_another(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    sense(shard=(1, 2), file=file)
    assert sense(shard=(2, 2), file=file).missing == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"calibration": samples(1)}, "samples"),
        ({"seed": 5}, "seed"),
        ({"compensate": "mean"}, "compensate"),
        ({"keep": (0.5,)}, "keep"),
        ({"exclude": ["w2"]}, "exclude"),
    ],
)
def test_files_of_other_studies_are_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    file = tmp_path / "s.json"
    first = sense(shard=(1, 3), file=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match=f"another study: {named} differ"):
        sense(file=file, **change)
    assert file.read_bytes() == before
    with pytest.raises(InputError, match=f"different studies: {named} differ"):
        first.merge(sense(shard=(2, 3), **change))


def test_parts_of_another_model_are_refused() -> None:
    other = network()
    other.producer_name = "somebody else"
    part = onnxprune.sensitivity(other, calibration=samples(), threads=1, shard=(1, 3))
    with pytest.raises(InputError, match="model differ"):
        sense(shard=(2, 3)).merge(part)


def test_parts_with_other_groups_are_refused() -> None:
    one = Sensitivity(Study("m", "s", {}, {}), {}, ("a", "b"))
    with pytest.raises(InputError, match="groups differ"):
        one.merge(replace(one, groups=("a",)))


def test_infinite_divergence_survives_the_file(tmp_path: Path) -> None:
    cuts = (
        GroupCut(0.5, 4, float("inf"), {"macs": 1, "params": 1}),
        GroupCut(0.25, 2, None, {"macs": 1, "params": 1}, "it does not run"),
    )
    row = GroupSensitivity("a", "channel", 8, cuts)
    kept = Sensitivity(Study("m", "s", {}, {}), {"macs": 2}, ("a",), (row,))
    kept.write(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == kept


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": ()}, "no fraction"),
        ({"keep": (1.0,)}, "above 0 and below 1"),
        ({"keep": (0.5, 0)}, "above 0 and below 1"),
        ({"keep": ("half",)}, "fractions such as"),
        ({"keep": (float("nan"),)}, "above 0 and below 1"),
        ({"shard": (0, 2)}, "0/2 does not exist"),
        ({"shard": (3, 2)}, "3/2 does not exist"),
        ({"calibration": None}, "--calibration"),
        ({"compensate": "nonsense"}, "nonsense"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sense(**options)


def test_patterns_that_leave_no_group() -> None:
    with pytest.raises(NothingPrunable):
        sense(exclude=["*"])


def test_labels_are_what_gradients_are_taken_at() -> None:
    """Other labels make other units matter, and another study."""
    first, other = np.zeros(256, int), np.full(256, 3)
    given: dict[str, Any] = {"criterion": "taylor", "loss": "cross-entropy", "compensate": "none"}
    found = sense(labels=first, **given)
    assert found.rows == sense(labels=first.tolist(), **given).rows
    changed = sense(labels=other, **given)
    assert found.study.differences(changed.study) == ["labels"]
    assert found.rows != changed.rows


def test_as_many_labels_as_samples() -> None:
    with pytest.raises(InputError, match="3 labels for 256 samples"):
        sense(labels=[0, 1, 2])


def test_groups_are_not_fine_tuned() -> None:
    with pytest.raises(InputError, match="trains nothing; leave out finetune"):
        sense(finetune=True)
