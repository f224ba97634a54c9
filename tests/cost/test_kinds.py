"""The table of costs agrees with what targets may name and with what a cost model counts."""

from __future__ import annotations

from dataclasses import fields

from onnxprune.cost.kinds import FIGURES, KINDS
from onnxprune.options import LATENCY, TARGETS
from onnxprune.report.records import Sizes


def test_every_target_is_a_cost_or_the_channels() -> None:
    assert {"channels", *(kind.name for kind in KINDS if kind.target)} == set(TARGETS)
    assert [kind.name for kind in KINDS if kind.measured] == [LATENCY]


def test_reports_have_the_figure_of_every_counted_kind() -> None:
    assert set(FIGURES) == {kind.name for kind in KINDS if not kind.measured}
    assert set(FIGURES.values()) <= {field.name for field in fields(Sizes)}
