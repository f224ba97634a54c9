"""The tables of sweeps and sensitivities fit the terminal, whatever the names."""

from __future__ import annotations

import io
import math

from onnxprune.pruning.studies.sensitivity import Sensitivity
from onnxprune.pruning.studies.sweep import Sweep, SweepPoint
from onnxprune.report.records import GroupCut, GroupSensitivity, Study
from onnxprune.report.text import TextReport, make_console

STUDY = Study("m", "s", {}, {})
COSTS = {"macs": 1000, "params": 1000, "bytes": 4000, "memory": 8000}


def point(macs: float, divergence: float, **more: object) -> SweepPoint:
    result = {kind: int(number * macs) for kind, number in COSTS.items()}
    target = {"macs": macs}
    return SweepPoint(
        target,
        original=COSTS,
        result=result,
        divergence=divergence,
        outputs=({"agreement": 0.987}, {"agreement": None}),
        **{"latency": {"ratio": 0.75}, **more},  # type: ignore[arg-type]
    )


def swept(*points: SweepPoint) -> str:
    stream = io.StringIO()
    TextReport(make_console(stream)).swept("title", Sweep(STUDY, points))
    return stream.getvalue()


def sensed(found: Sensitivity, verbose: bool = False) -> str:
    stream = io.StringIO()
    TextReport(make_console(stream), verbose).sensed("title", found)
    return stream.getvalue()


def test_latencies_of_a_busy_machine_are_marked() -> None:
    busy = {"ratio": 0.6, "reliable": False}
    text = swept(point(0.5, 0.1, latency=busy), point(0.7, 0.05))
    assert "~60.0 %" in text
    assert "~75.0 %" not in text
    assert "~: not reliable, the machine was busy; close other programs, give --threads" in text
    assert "~" not in swept(point(0.5, 0.1))


def test_a_sweep() -> None:
    text = swept(
        point(0.5, 0.1), point(0.7, math.inf), SweepPoint({"macs": 0.1}, "unreachable", "no")
    )
    first, second = (
        line for line in text.splitlines() if line.startswith("macs=0.") and "%" in line
    )
    assert first.split() == [
        "macs=0.5",
        "50.0",
        "%",
        "50.0",
        "%",
        "50.0",
        "%",
        "50.0",
        "%",
        "75.0",
        "%",
        "98.7",
        "%",
        "0.1",
        "0.0",
        "s",
    ]
    assert "infinite" in second
    assert second.endswith("*")
    assert "*: dominated; another point" in text
    assert "macs=0.1 unreachable: no" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_sweep_with_labels() -> None:
    quality = {"measure": "accuracy", "original": 97.66, "result": 95.3, "samples": 256}
    text = swept(point(0.5, 0.1, quality=quality), point(0.3, 0.4, quality=quality))
    heading, first = (one for one in text.splitlines() if one.startswith(("target", "macs=0.5")))
    assert heading.split()[-4:] == ["accuracy", "same", "answer", "divergence"]
    assert first.endswith("95.3 %       98.7 %         0.1")
    assert "accuracy: the original has 97.66 %, on 256 samples" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_sweep_without_results() -> None:
    text = swept(SweepPoint({"macs": 0.1}, "unreachable", "no"))
    assert text == "title\n\nmacs=0.1 unreachable: no\n"


def group(name: str, *divergences: float | None) -> GroupSensitivity:
    saved = {"macs": 250, "params": 100}
    cuts = [GroupCut(1 / (n + 2), 4, one, saved) for n, one in enumerate(divergences)]
    return GroupSensitivity(name, "channel", 16, tuple(cuts))


def test_groups_most_sensitive_first() -> None:
    names = ("mild", "x" * 200, "worst", "stuck", "absent")
    rows = (
        group("mild", 0.001, 0.01),
        group("x" * 200, 0.2, None),
        group("worst", 0.1, math.inf),
        GroupSensitivity("stuck", "channel", 8, reason="nothing of it can go alone"),
    )
    text = sensed(Sensitivity(STUDY, {"macs": 1000, "params": 0}, names, rows))
    lines = [line for line in text.splitlines() if " channel " in line]
    assert [line[:3] for line in lines] == ["wor", "xxx", "mil"]
    assert lines[0].split() == ["worst", "channel", "16", "0.1", "infinite", "25.0", "%"]
    assert "stuck was not cut: nothing of it can go alone" in text
    assert "groups not measured yet (1): absent" in text
    assert max(map(len, text.splitlines())) <= 100


def test_savings_are_of_parameters_where_there_are_no_macs() -> None:
    found = Sensitivity(STUDY, {"macs": 0, "params": 1000}, ("a",), (group("a", 0.5),))
    assert "10.0 %" in sensed(found)
    assert "saves: parameters" in sensed(found)


def test_only_the_worst_of_many_groups_are_shown() -> None:
    rows = tuple(group(f"g{number}", number) for number in range(50))
    found = Sensitivity(STUDY, {"macs": 1000, "params": 1}, tuple(r.group for r in rows), rows)
    assert "and 20 more groups; -v shows all" in sensed(found)
    assert "g0 " in sensed(found, verbose=True)
