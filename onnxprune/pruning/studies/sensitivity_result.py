"""What each group alone costs when it is cut: results that can be kept in a file and merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError
from onnxprune.model.save import write_text_atomic
from onnxprune.pruning.studies.study import read_study, written
from onnxprune.report.figures import json_text
from onnxprune.report.records import GroupCut, GroupSensitivity, SensitivityRecord
from onnxprune.report.study_pages import sensitivity_page

_FORMAT = "onnxprune-sensitivity"


@dataclass(frozen=True)
class Sensitivity(SensitivityRecord):
    """What `sensitivity` returns.

    Attributes:
        study: what all rows have in common.
        costs: by kind (params, macs) what the original costs.
        groups: names of all groups of the study, in the order of the model.
        rows: the groups that were measured, in the same order.
    """

    def with_rows(self, rows: Sequence[GroupSensitivity]) -> Sensitivity:
        """Add rows; those of groups that have one already are left out."""
        known = {row.group: row for row in (*rows, *self.rows)}
        return replace(self, rows=tuple(known[name] for name in self.groups if name in known))

    def merge(self, *others: Sensitivity) -> Sensitivity:
        """Put parts of one study together.

        Raises:
            InputError: for parts of another study; says what differs.
        """
        merged = self
        for other in others:
            differing = self.study.differences(other.study)
            if not differing and self.groups != other.groups:
                differing = ["groups"]
            if differing:
                raise InputError(f"parts of different studies: {', '.join(differing)} differ")
            merged = merged.with_rows(other.rows)
        return merged

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        results = {
            "costs": dict(self.costs),
            "groups": list(self.groups),
            "missing": list(self.missing),
            "rows": [asdict(row) for row in self.rows],
        }
        return written(self.study, _FORMAT, results)

    def to_html(self, title: str = "") -> str:
        """Return one self-contained HTML page.

        Args:
            title: what the model is called; empty for a model in memory.
        """
        return sensitivity_page(self, title)

    def write(self, file: str | Path) -> None:
        """Write a JSON file atomically.

        Raises:
            InputError: when it cannot be written.
        """
        write_text_atomic(file, json_text(self.to_dict()))

    @classmethod
    def load(cls, file: str | Path) -> Sensitivity:
        """Read what `write` wrote.

        Raises:
            InputError: when it cannot be read or is something else.
        """
        study, data = read_study(file, _FORMAT)
        try:
            rows = tuple(_row(row) for row in data["rows"])
            return cls(study, dict(data["costs"]), tuple(data["groups"]), rows)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{file}: is damaged; delete it to start afresh") from None


def _row(data: Mapping[str, Any]) -> GroupSensitivity:
    return GroupSensitivity(**{**data, "cuts": tuple(_cut(cut) for cut in data["cuts"])})


def _cut(data: Mapping[str, Any]) -> GroupCut:
    cut = GroupCut(**data)
    # JSON has no infinity
    lost = cut.divergence is None and not cut.reason
    return replace(cut, divergence=math.inf) if lost else cut
