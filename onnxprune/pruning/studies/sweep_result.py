"""The trade-off between what a model costs and how far its outputs are from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError
from onnxprune.model.save import check_writable, write_text_atomic
from onnxprune.pruning.results import PruneResult
from onnxprune.pruning.studies.study import read_study, written
from onnxprune.report.figures import json_text
from onnxprune.report.records import SweepPointRecord, SweepRecord
from onnxprune.report.study_pages import sweep_page, tradeoff_chart

_FORMAT = "onnxprune-sweep"


@dataclass(frozen=True)
class SweepPoint(SweepPointRecord):
    """One budget, with its result while that is in memory.

    Attributes:
        run: the result; None where there is none, or its model is in a folder.
    """

    run: PruneResult | None = None


@dataclass(frozen=True)
class Sweep(SweepRecord):
    """What `sweep` returns.

    Attributes:
        study: what all points have in common.
        points: in the order asked for.
        baselines: the same budgets met in simple ways, for comparison.
        source: the model's file, which nothing may overwrite; None for a model in memory.
    """

    points: tuple[SweepPoint, ...] = ()
    baselines: tuple[SweepPoint, ...] = ()

    def with_point(self, point: SweepPoint) -> Sweep:
        """Add a point, among the baselines if it is one, in place of one with the same target."""
        if point.baseline:
            return replace(self, baselines=_with(self.baselines, point))
        return replace(self, points=_with(self.points, point))

    def find(self, target: Mapping[str, float], baseline: str = "") -> SweepPoint | None:
        """The point with a target."""
        among = self.baselines if baseline else self.points
        wanted = baseline, dict(target)
        return next(
            (point for point in among if (point.baseline, dict(point.target)) == wanted), None
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        best = self.pareto()
        points = [point.to_dict() | {"pareto": point in best} for point in self.points]
        baselines = [point.to_dict() for point in self.baselines]
        return written(self.study, _FORMAT, {"points": points, "baselines": baselines})

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        return sweep_page(self)

    def save(self, folder: str | Path, *, models: bool = True) -> Sweep:
        """Write `sweep.json`, `sweep.svg`, `sweep.html` and the models of the Pareto points.

        Args:
            folder: made if it is missing (not those above it).
            models: write models and plans, of the results that are still in memory.

        Returns:
            the sweep, its points with the names of the files.

        Raises:
            InputError: when something cannot be written.
        """
        target = make_folder(folder)
        best = self.pareto() if models else ()
        points = tuple(
            save_point(point, target) if point.run is not None and point in best else point
            for point in self.points
        )
        saved = replace(self, points=points)
        saved.write(target)
        return saved

    def write(self, folder: Path) -> None:
        """Write `sweep.json` and, where there is any result, `sweep.svg` and `sweep.html`."""
        write_text_atomic(folder / "sweep.json", json_text(self.to_dict()))
        if any(point.done for point in self.points):
            write_text_atomic(folder / "sweep.svg", tradeoff_chart(self))
            write_text_atomic(folder / "sweep.html", self.to_html())

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Read the `sweep.json` of a folder.

        Raises:
            InputError: when there is none, or it is damaged.
        """
        path = Path(folder) / "sweep.json"
        study, data = read_study(path, _FORMAT)
        try:
            points, baselines = data["points"], data.get("baselines", ())
            return cls(
                study,
                tuple(map(SweepPoint.from_dict, points)),
                tuple(map(SweepPoint.from_dict, baselines)),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{path}: is damaged; delete it to start afresh") from None


def file_stem(target: Mapping[str, float]) -> str:
    """Name of the files of a point, such as macs-0.50."""
    return "+".join(f"{kind}-{_fraction(value)}" for kind, value in target.items())


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and make sure that files can be written there.

    Raises:
        InputError: when that is not possible.
    """
    path = Path(folder)
    check_folder(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror or error}") from None
    check_writable(path / "sweep.json")
    return path


def check_folder(folder: str | Path) -> None:
    """Make sure that a folder can be made or is there, without making it.

    Raises:
        InputError: when it is a file, or the folder above is missing or not writable.
    """
    path = Path(folder)
    if path.is_dir():
        check_writable(path / "sweep.json")
    elif path.exists():
        raise InputError(f"{path}: is a file; name a folder")
    else:
        check_writable(path)


def save_point(point: SweepPoint, folder: Path) -> SweepPoint:
    """Write plan and model of a point; return it with the name of the file."""
    assert point.run is not None
    stem = file_stem(point.target)
    write_text_atomic(folder / f"{stem}.plan.json", point.run.plan.to_json())
    point.run.save(folder / f"{stem}.onnx")
    return replace(point, file=f"{stem}.onnx")


def _fraction(value: float) -> str:
    return f"{value:.2f}" if round(value, 2) == value else f"{value:g}"


def _with(points: Sequence[SweepPoint], new: SweepPoint) -> tuple[SweepPoint, ...]:
    """Points with a new one in place of that of the same target."""
    wanted = new.baseline, dict(new.target)
    others = [point for point in points if (point.baseline, dict(point.target)) != wanted]
    return (*others, new)
