"""The kinds of cost that every account of a model lists, before and after."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.kinds import KINDS
from onnxprune.coupling.groups import Refused
from onnxprune.options import share_text
from onnxprune.report.accounts import file_digest
from onnxprune.report.figures import count, percent, printable, share, size
from onnxprune.report.records import Provenance, PruneRecord, Sizes, Study
from onnxprune.verification.certificate import Certificate


@dataclass(frozen=True)
class ShownCost:
    """A kind of cost as it is shown.

    Attributes:
        name: what people call it.
        figure: takes it from the costs of a model.
        text: writes it.
        traced: it depends on the traced size.
    """

    name: str
    figure: Callable[[Sizes], int]
    text: Callable[[int], str]
    traced: bool

    def shown(self, sizes: Sizes) -> str:
        """The figure as text."""
        return self.text(self.figure(sizes))


_WRITTEN: Mapping[str, Callable[[int], str]] = {"count": count, "bytes": size}

COSTS = tuple(
    ShownCost(kind.label, attrgetter(kind.figure), _WRITTEN[kind.unit], kind.traced)
    for kind in KINDS
    if kind.figure
)


@dataclass(frozen=True)
class CostRow:
    """One kind of cost of two models.

    Attributes:
        kind: what is counted.
        before: of the original, as text.
        after: of the result, as text.
        ratio: what remains, as a fraction.
    """

    kind: ShownCost
    before: str
    after: str
    ratio: float

    def cells(self) -> tuple[str, str, str, str]:
        """Name, both figures and what remains, as text."""
        return self.kind.name, self.before, self.after, percent(self.ratio)


def cost_rows(before: Sizes, after: Sizes) -> Iterator[CostRow]:
    """One row for each kind of cost."""
    for kind in COSTS:
        ratio = share(kind.figure(after), kind.figure(before))
        yield CostRow(kind, kind.shown(before), kind.shown(after), ratio)


def traced_size(sizes: Sizes) -> str:
    """The size that traced costs refer to, in words."""
    return ", ".join(f"{printable(name)} {extent}" for name, extent in sizes.extents.items())


Row = tuple[str, str]

_NAME = 50
_BLOCKS = 3
_NO_BETTER = "no better on samples that were not fitted"


def effort_rows(report: PruneRecord, verbose: bool) -> list[Row]:
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


def _repairs(repairs: Sequence[LayerFit], verbose: bool) -> list[Row]:
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


def _errors(one: LayerFit) -> tuple[float, float]:
    return one.before, one.after


def _layers(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"


def _part(error: float) -> str:
    return f"{error * 100:.3g} %"


def _short(divergence: float) -> str:
    return f"{divergence:.3g}" if math.isfinite(divergence) else "too much to be measured"


# Reasons that name a tensor of the model, without it.
_GENERAL = (
    (re.compile(r"it meets an axis of .+ that cannot be cut"), "it meets an axis that stays whole"),
    (re.compile(r"the shape of .+ is unknown"), "a shape is unknown"),
    (re.compile(r".+ is only known at run time"), "a value is only known at run time"),
)


@dataclass(frozen=True)
class Reason:
    """All axes that stay whole for one reason.

    Attributes:
        reason: in plain words.
        axes: how many.
        parameters: elements of their tensors that it holds back.
        example: the axis with the most of them.
    """

    reason: str
    axes: int
    parameters: int
    example: str


def group_refusals(refused: Iterable[Refused]) -> list[Reason]:
    """Add refusals up by reason, those that hold back the most parameters first."""
    found: dict[str, list[Refused]] = {}
    for one in refused:
        found.setdefault(_general(one.reason), []).append(one)
    reasons = [_reason(text, members) for text, members in found.items()]
    return sorted(reasons, key=lambda one: (-one.parameters, -one.axes, one.reason))


def _reason(text: str, members: list[Refused]) -> Reason:
    # A tensor refused along two axes is held back once.
    tensors: dict[str, int] = {}
    for one in members:
        tensors[one.tensor] = max(tensors.get(one.tensor, 0), one.parameters)
    largest = max(members, key=lambda one: one.parameters)
    return Reason(text, len(members), sum(tensors.values()), largest.axis)


def _general(reason: str) -> str:
    for pattern, text in _GENERAL:
        if pattern.fullmatch(reason):
            return text
    return reason


_MUCH = 1.1
_TINY = 1e-4


def doubts(report: PruneRecord) -> list[str]:
    """Sentences on savings that are none: the measured latency, and widths between blocks."""
    found = []
    fell = 1 - share(report.result.macs, report.original.macs)
    latency = report.latency
    if latency is not None and fell > 0 and latency.interval[1] >= 1:
        gain = "did not fall" if latency.interval[0] >= 1 else "shows no clear gain"
        found.append(
            f"The MACs fell by {percent(fell)}, but the measured latency {gain}{_why(report)}."
        )
    wasted = {block: ratio for block, ratio in report.padding.items() if ratio > _MUCH}
    if wasted:
        ratios = ", ".join(f"{ratio:.2f} x with blocks of {n}" for n, ratio in wasted.items())
        found.append(
            "Convolutions compute whole blocks of channels: with these widths more than the MACs "
            f"above ({ratios}). --round-to {max(wasted)} or a latency target makes use of that."
        )
    return found


def _why(report: PruneRecord) -> str:
    if max(report.padding.values(), default=1.0) > _MUCH:
        return ": widths between the blocks that kernels compute save nothing"
    if report.latency is not None and report.latency.original < _TINY:
        return ": so small a model spends its time on calls, not on arithmetic"
    return ": the time goes elsewhere"


GATES = (
    "inputs and outputs have the names, types and declared shapes of the original's",
    "onnx.checker accepts the file, or refused the original as well",
    "onnxruntime loads and runs it, with its usual optimisations, to the same outputs",
)
"""What every result passes besides the certificate; see `verification.gates`."""


def certificate_verdict(one: Certificate) -> str:
    """Return "holds" or "FAILS"."""
    return "holds" if one.holds else "FAILS"


def certificate_text(one: Certificate) -> str:
    """Return how well the cut model agrees with the masked one, in one clause.

    Inputs that do not react to what was removed would make an empty proof, so it says which it is.
    """
    inputs = "1 input" if one.runs == 1 else f"{one.runs} inputs"
    agreement = "exactly" if one.error == 0 else f"within {one.error:.2g}"
    reacts = "reacts" if one.runs == 1 else "react"
    what = "what was removed" if one.effect > one.tolerance else "nothing that was removed"
    return (
        f"cut and masked model agree {agreement} (allowed {one.tolerance:.0e}) on {inputs} that "
        f"{reacts} to {what}"
    )


Facts = list[tuple[str, str]]

_OWN_LINES = ("seed", "labels")
"""Options that have lines of their own."""


def origin_facts(one: Provenance | None, model_file: str | Path | None) -> Facts:
    """What a run depends on, and the files it read and wrote.

    Args:
        one: of the run; None where nothing is known.
        model_file: where the result was saved; None where it was not.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    facts: Facts = []
    if one is not None:
        facts.append(("original", _file(one.model or "in memory", one.sha256)))
    if model_file is not None:
        facts.append(("result", _file(str(model_file), file_digest(model_file))))
        data = Path(f"{model_file}.data")
        if data.is_file():
            facts.append(("its data", _file(str(data), file_digest(data))))
    if one is None:
        return facts
    facts.append(("seed", str(one.options.get("seed", 0))))
    if set_options := option_text(one.options):
        facts.append(("options", set_options))
    return [*facts, *machine_facts(one.versions, one.machine)]


def study_facts(study: Study) -> Facts:
    """What all results of a study depend on."""
    labels = study.options.get("labels")
    return [
        ("model", f"sha256 {study.model}"),
        ("samples", f"sha256 {study.samples}"),
        *([("labels", f"sha256 {labels}")] if labels else []),
        ("seed", str(study.options.get("seed", 0))),
        ("options", option_text(study.options)),
        *machine_facts(study.versions, {}),
    ]


def option_text(options: Mapping[str, Any]) -> str:
    """Options with their values, those that are empty left out."""
    shown = {name: _value(value) for name, value in options.items() if name not in _OWN_LINES}
    return ", ".join(f"{name} {text}" for name, text in shown.items() if text)


def machine_facts(versions: Mapping[str, str], machine: Mapping[str, str]) -> Facts:
    """Versions, and what they ran on."""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    ran = ", ".join(f"{name} {value}" for name, value in machine.items())
    return [("versions", listed), *([("machine", ran)] if ran else [])]


def _file(name: str, digest: str) -> str:
    return f"{name}, sha256 {digest}"


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, dict):
        return " and ".join(f"{name}={_value(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return share_text(value)
    return str(value)
