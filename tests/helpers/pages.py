"""Reports and studies with everything in them, for tests of the pages; names are hostile."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.groups import Refused
from onnxprune.pruning.plan import Plan, PlannedStep
from onnxprune.pruning.results import PruneResult, Report
from onnxprune.pruning.studies.sensitivity import Sensitivity
from onnxprune.pruning.studies.sweep import Sweep, SweepPoint
from onnxprune.report.records import (
    ErrorCurve,
    GroupAccount,
    GroupCut,
    GroupSensitivity,
    Provenance,
    Sizes,
    StepReport,
    Study,
)
from onnxprune.verification.certificate import Certificate
from onnxprune.verification.comparison import OutputComparison, WorstSample
from onnxprune.verification.quality import Quality

HOSTILE = (
    "</td><script>document.title='hacked'</script><img src=x onerror=alert(1)>\"'&\x1b\u202e\n"
)
BEFORE = Sizes(1000, 2000, 5000, 4000, 2400, 6400, {"batch": 2, HOSTILE: 8})
AFTER = Sizes(500, 1000, 2500, 2000, 1800, 3800, BEFORE.extents)
STUDY = Study("ab" * 32, "cd" * 32, {"criterion": HOSTILE, "seed": 7}, {"onnxprune": "1"})


def report(count: int = 3, **changes: Any) -> Report:
    """A report in which no section is empty; changes replace what it has."""
    accounts = tuple(
        GroupAccount(
            number,
            f"{HOSTILE}{number}",
            "channel",
            64,
            64 - number % 40,
            (HOSTILE, "other"),
            ErrorCurve((64, 32, 1), (0.0, 0.1, 1.5), 0.01 * number),
        )
        for number in range(1, count + 1)
    )
    sample = WorstSample(41, 0.5, 1.0, (3, 4), (0.25, 2.0), (0.5, 2.5))
    given: dict[str, Any] = {
        "original": BEFORE,
        "result": AFTER,
        "batch": 2,
        "certificate": Certificate(1e-7, 1e-4, 2, 0.9),
        "outputs": (OutputComparison(HOSTILE, 0.99, 0.1, 0.95, (sample,)),),
        "latency": Latency(1e-3, 8e-4, 0.8, 0.7, 0.9, 9, (0.75, 0.85)),
        "padding": {16: 1.5},
        "widths": {},
        "inexact": (HOSTILE,),
        "refused": (Refused(HOSTILE, 0, HOSTILE, HOSTILE, 320),),
        "dropped": {HOSTILE: HOSTILE},
        "repairs": (
            LayerFit(HOSTILE, 0.2, 0.1, True),
            LayerFit("second", 0.4, 0.3, True),
            LayerFit("wide", float("nan"), float("nan"), False, "too many unknowns"),
        ),
        "allocation": "raw",
        "trials": {"raw": 0.01, "stream": 0.02, "root": float("inf")},
        "quality": Quality("accuracy", 99.1, 98.9, 450, True),
        "note": HOSTILE,
        "seconds": 1.5,
        "groups": accounts,
        "provenance": Provenance(
            HOSTILE,
            "ab" * 32,
            {"target": {"macs": 0.5}, "criterion": "reconstruction", "seed": 7, "steps": 1},
            {"onnxprune": "0.1.0"},
            {"processor": HOSTILE},
        ),
    }
    return Report(**given | changes)


def pipeline(**changes: Any) -> PruneResult:
    """Two passes, the second of which changes inputs; changes replace what the result has."""
    outputs = (
        OutputComparison(HOSTILE, 0.99, 0.1, 0.95),
        OutputComparison("second", None, None, None),
    )
    details = {
        HOSTILE: HOSTILE,
        "zeros": 0.5,
        "kept": list(range(100)),
        "flag": True,
        "widths": {HOSTILE: [64, 32]},
        "certificate": {"error": np.float32(0.25), HOSTILE: None},
        "layers": {HOSTILE: {"share": 0.5}, "second": {"amount": 3}},
        "nothing": {},
    }
    first = StepReport(
        HOSTILE,
        {"target": {"macs": 0.5}, "names": [HOSTILE], "how": HOSTILE},
        1.5,
        True,
        AFTER,
        outputs,
        Latency(1e-3, 5e-4, 0.5, 0.4, 0.6, 9, (0.45, 0.55)),
        False,
        details,
        HOSTILE,
        (HOSTILE,),
        {".tokens.json": HOSTILE},
    )
    second = StepReport("quantize", {}, 0.1, False, AFTER, new_interface=True)
    planned = tuple(PlannedStep(one.name, one.options) for one in (first, second))
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    given: dict[str, Any] = {
        "model": model,
        "original": BEFORE,
        "steps": (first, second),
        "plan": Plan({"sha256": "ab" * 32}, seed=7, steps=planned),
        "provenance": Provenance(
            HOSTILE, "ab" * 32, {"seed": 7}, {"onnxprune": "0.1.0"}, {"processor": HOSTILE}
        ),
        "_ir": model,
    }
    return PruneResult(**given | changes)


def sweep(baselines: bool = True) -> Sweep:
    """Two points, one that is out of reach, and one baseline."""

    def point(share: float, divergence: float, **more: Any) -> SweepPoint:
        return SweepPoint(
            {"macs": share},
            original=vars(BEFORE),
            result=vars(BEFORE) | {"macs": int(2000 * share)},
            channels=share,
            latency={"original": 1e-3, "result": 1e-3 * share, "ratio": share},
            outputs=({"output": HOSTILE, "agreement": 1 - divergence, "cosine": 0.9},),
            divergence=divergence,
            widths={HOSTILE: (64, 32)},
            **more,
        )

    points = (point(0.8, 0.01), point(0.5, 0.05))
    missed = SweepPoint({"macs": 0.01}, "unreachable", HOSTILE)
    simple = (point(0.8, 0.2, baseline="random"), point(0.5, 0.6, baseline="random"))
    return Sweep(STUDY, (*points, missed), simple if baselines else ())


def sensitivity() -> Sensitivity:
    """Groups that were cut, one of them without limit, one that cannot be, and one to come."""

    def row(name: str, *divergences: float | None) -> GroupSensitivity:
        cuts = tuple(
            GroupCut(keep, int(16 * keep), one, {"macs": 500, "params": 50})
            for keep, one in zip((0.75, 0.5), divergences, strict=True)
        )
        return GroupSensitivity(name, "channel", 16, cuts)

    rows = (
        row(HOSTILE, 0.001, 0.01),
        row("second", 0.1, float("inf")),
        GroupSensitivity("whole", "head", 4, (), HOSTILE),
    )
    names = (HOSTILE, "second", "whole", "waiting")
    return Sensitivity(STUDY, {"macs": 2000, "params": 1000}, names, rows)


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())
