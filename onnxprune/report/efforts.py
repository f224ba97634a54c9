"""What was tried and solved on the samples, in a few lines."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from onnxprune.report.figures import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxprune.passes.least_squares import Repair
    from onnxprune.report.summary import Report

__all__ = ["effort_rows"]

Row = tuple[str, str]

_NAME = 50
_BLOCKS = 3
_NO_BETTER = "no better on samples that were not fitted"


def effort_rows(report: Report, verbose: bool) -> list[Row]:
    """Rows of a label and a text: the allocation, the layers, what was not done as asked."""
    rows = [*_blocks(report.blocks, report.depths, verbose)]
    rows += _allocation(report.allocation, report.trials, verbose)
    rows += _repairs(report.repairs, verbose)
    return [*rows, ("note", printable(report.note))] if report.note else rows


def _blocks(gone: Sequence[str], depths: Mapping[int, float], verbose: bool) -> list[Row]:
    """How many residual blocks went, and what other numbers would have cost."""
    if not (gone or depths):
        return []
    names = [printable(one, _NAME) for one in (gone if verbose else gone[:_BLOCKS])]
    names += ["..."] if len(names) < len(gone) else []
    text = f"{len(gone)} removed" + (f" ({', '.join(names)})" if gone else "")
    if len(gone) in depths:
        text += f": outputs diverge by {_short(depths[len(gone)])}"
    others = [f"{_short(one)} with {n}" for n, one in sorted(depths.items()) if n != len(gone)]
    return [("blocks", f"{text}; by {', '.join(others)}" if others else text)]


def _allocation(name: str, trials: Mapping[str, float], verbose: bool) -> list[Row]:
    """Which way of spreading the removal won; nothing where there was no choice."""
    if not trials:
        return []
    others = [value for other, value in trials.items() if other != name and math.isfinite(value)]
    text = f"'{name}', the best of {len(trials)} tried: outputs diverge by {_short(trials[name])}"
    if verbose:
        ordered = sorted(trials, key=lambda one: trials[one])
        return [
            ("allocation", f"{text}; the others:"),
            *(("", f"{other}: {_short(trials[other])}") for other in ordered if other != name),
        ]
    if others:
        text += f", the others by {_short(min(others))}"
        text += f" to {_short(max(others))}" if len(others) > 1 else ""
    return [("allocation", text)]


def _repairs(repairs: Sequence[Repair], verbose: bool) -> list[Row]:
    """How many layers were solved anew, to what effect, and why others were not."""
    if not repairs:
        return []
    solved = [one for one in repairs if one.solved]
    text = f"{len(solved)} of {_layers(len(repairs))} solved anew"
    if solved:
        before, after = (median(errors) for errors in zip(*map(_errors, solved), strict=True))
        text += f"; median error {_part(before)} -> {_part(after)} of the variance of their outputs"
    rows = [("least squares", text)]
    if verbose:
        for one in solved:
            before, after = _errors(one)
            name = printable(one.node, _NAME)
            rows.append(("", f"{name}: {_part(before)} -> {_part(after)}"))
    left: dict[str, list[str]] = {}
    for one in repairs:
        if not one.solved:
            left.setdefault(one.reason or _NO_BETTER, []).append(printable(one.node, _NAME))
    for reason, names in left.items():
        shown = names if verbose else names[:1]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        rows.append(("not solved", f"{printable(reason)}: {', '.join(shown)}{more}"))
    return rows


def _errors(one: Repair) -> tuple[float, float]:
    return one.before, one.after


def _layers(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"


def _part(error: float) -> str:
    return f"{error * 100:.3g} %"


def _short(divergence: float) -> str:
    return f"{divergence:.3g}" if math.isfinite(divergence) else "too much to be measured"
