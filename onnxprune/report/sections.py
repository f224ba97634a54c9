"""What pages and tables say in the same words.

Costs, latency and outputs; the certificate; savings that are none; axes that cannot be cut; where
a result comes from; what a pass tells of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.kinds import KINDS, CostKind
from onnxprune.cost.latency.measure import Latency, steadier
from onnxprune.coupling.groups import Refused
from onnxprune.options import LATENCY, share_text
from onnxprune.report.accounts import file_digest
from onnxprune.report.figures import (
    count,
    fine_percent,
    percent,
    printable,
    share,
    significant,
    size,
)
from onnxprune.report.records import Provenance, PruneRecord, Sizes, Study, TuningRecord
from onnxprune.verification.certificate import Certificate
from onnxprune.verification.comparison import OutputComparison

COSTS = tuple(kind for kind in KINDS if kind.figure)
"""Kinds of cost that the sizes of a model list."""


@dataclass(frozen=True)
class CostRow:
    """One kind of cost of two models.

    Attributes:
        kind: what is counted.
        before: of the original, as text.
        after: of the result, as text.
        ratio: what remains, as a fraction.
    """

    kind: CostKind
    before: str
    after: str
    ratio: float

    def cells(self) -> tuple[str, str, str, str]:
        """Label, both figures and what remains, as text."""
        return self.kind.label, self.before, self.after, percent(self.ratio)


def cost_rows(before: Sizes, after: Sizes) -> list[CostRow]:
    """One row for each kind of cost."""
    return [
        CostRow(
            kind, cost_text(kind, before), cost_text(kind, after), remaining(kind, before, after)
        )
        for kind in COSTS
    ]


def cost_text(kind: CostKind, sizes: Sizes) -> str:
    """What a model costs, as text."""
    figure = getattr(sizes, kind.figure)
    return size(figure) if kind.unit == "bytes" else count(figure)


def remaining(kind: CostKind, before: Sizes, after: Sizes) -> float:
    """What remains of a cost, as a fraction."""
    return share(getattr(after, kind.figure), getattr(before, kind.figure))


def latency_interval(latency: Latency) -> str:
    """The interval of a measured ratio, as text; that it means nothing where it does not."""
    if not latency.reliable:
        return "machine busy, not reliable"
    low, high = latency.interval
    return f"{percent(low)} to {percent(high)}, 95 % interval"


def latency_size(report: PruneRecord) -> str:
    """The size that a measured latency refers to: that of the traced costs, or a batch."""
    latency = report.latency
    if latency is not None and latency.batch not in (0, report.batch):
        return f"batch {latency.batch}"
    return traced_size(report.original)


@dataclass(frozen=True)
class OutputSummary:
    """The worst of all outputs by each measure; None where no output has it.

    Attributes:
        agreement: lowest fraction of samples with the same answer.
        cosine: lowest mean cosine similarity.
        relative_error: largest relative error.
    """

    agreement: float | None
    cosine: float | None
    relative_error: float | None


def summarise(outputs: Iterable[OutputComparison]) -> OutputSummary:
    """Return the worst of all outputs."""
    known = list(outputs)
    agreements = [output.agreement for output in known if output.agreement is not None]
    cosines = [output.cosine for output in known if output.cosine is not None]
    errors = [output.relative_error for output in known if output.relative_error is not None]
    return OutputSummary(
        min(agreements, default=None), min(cosines, default=None), max(errors, default=None)
    )


def traced_size(sizes: Sizes) -> str:
    """The input shapes that traced costs refer to, in words."""
    return ", ".join(f"{printable(name)} {extent}" for name, extent in sizes.extents.items())


GATES = (
    "inputs and outputs have the same names, types and declared shapes as the original's",
    "onnx.checker accepts the file, or rejects the original as well",
    "onnxruntime loads and runs it, and its graph optimisations do not change the outputs",
)
"""Checks of every result besides the certificate; see `verification.gates`."""


def certificate_verdict(certificate: Certificate) -> str:
    """Return "holds" or "FAILS"."""
    return "holds" if certificate.holds else "FAILS"


def certificate_text(certificate: Certificate) -> str:
    """Return how well the cut model agrees with the masked one, in one clause.

    The proof is empty when no input reacts to what was removed, so the clause says whether
    inputs do.
    """
    inputs = "1 input" if certificate.runs == 1 else f"{certificate.runs} inputs"
    agreement = "exactly" if certificate.error == 0 else f"within {certificate.error:.2g}"
    reacts = "reacts" if certificate.runs == 1 else "react"
    what = (
        "what was removed"
        if certificate.effect > certificate.tolerance
        else "nothing that was removed"
    )
    return (
        f"cut and masked model agree {agreement} (allowed {certificate.tolerance:.0e}) "
        f"on {inputs} that {reacts} to {what}"
    )


def changed_inputs(report: PruneRecord, limit: int | None = 3) -> str:
    """What became of initializers that are inputs too, in a sentence; empty where nothing did.

    Args:
        report: what a run did.
        limit: names that are shown; None for all.
    """
    cut = report.cut_inputs
    if not cut:
        return ""
    gone = sum(after is None for _, after in cut.values())
    names = [printable(name) for name in cut]
    shown = ", ".join(names[:limit]) + (" ..." if len(names[:limit]) < len(names) else "")
    count = (
        "1 initializer that is an input too has"
        if len(cut) == 1
        else (f"{len(cut)} initializers that are inputs too have")
    )
    removed = f" ({gone} of them read by nothing and removed)" if gone else ""
    return (
        f"{count} a new shape{removed}: values of the old shape cannot be given for them any more "
        f"({shown})"
    )


@dataclass(frozen=True)
class LeftOut:
    """Layers that were not re-fitted for one reason.

    Attributes:
        reason: in plain words.
        nodes: the layers.
        share: their part of the MACs of all layers that were to be re-fitted; None where unknown.
    """

    reason: str
    nodes: tuple[str, ...]
    share: float | None


_NO_BETTER = "no better on held-out samples"


def fit_reason(fit: LayerFit) -> str:
    """Why a layer was not re-fitted."""
    return fit.reason or _NO_BETTER


def left_out(fits: Sequence[LayerFit]) -> list[LeftOut]:
    """Layers that were not re-fitted by reason, the most MACs first."""
    whole = sum(fit.macs for fit in fits)
    by_reason: dict[str, list[LayerFit]] = {}
    for fit in fits:
        if not fit.solved:
            by_reason.setdefault(fit_reason(fit), []).append(fit)
    ordered = sorted(by_reason.items(), key=lambda entry: -sum(fit.macs for fit in entry[1]))
    return [
        LeftOut(
            reason,
            tuple(fit.node for fit in members),
            share(sum(fit.macs for fit in members), whole) if whole else None,
        )
        for reason, members in ordered
    ]


def refit_summary(fits: Sequence[LayerFit]) -> str:
    """How many layers were re-fitted, their share of the MACs, and to what effect."""
    solved = [fit for fit in fits if fit.solved]
    text = f"{len(solved)} of {len(fits)} {'layer' if len(fits) == 1 else 'layers'} re-fitted"
    whole = sum(fit.macs for fit in fits)
    if solved and whole:
        text += f", {percent(share(sum(fit.macs for fit in solved), whole))} of their MACs"
    if solved:
        before, after = median(fit.before for fit in solved), median(fit.after for fit in solved)
        text += f"; median error {fine_percent(before)} -> {fine_percent(after)} of output variance"
    return text


def tuning_text(tuning: TuningRecord) -> str:
    """What a fine-tuning came to, in one clause."""
    change = f"{significant(tuning.before)} -> {significant(tuning.after)}"
    if not tuning.best:
        change = f"stays {significant(tuning.before)}: no check-point was better than the start"
    where = f" at step {tuning.best}" if tuning.best and tuning.best != tuning.steps else ""
    number = tuning.steps if tuning.stopped is None else tuning.stopped
    cut_short = f" (stopped, {tuning.steps} were planned)" if tuning.stopped is not None else ""
    effort = f"; {number} steps of {tuning.batch} samples{cut_short}, rate {tuning.rate:g}"
    teacher = printable(Path(tuning.teacher).name)
    parts = {"teacher": f"divergence from {teacher}", "labels": "loss of labels"}
    judged = " plus ".join(parts[each] for each in tuning.learnt)
    if not tuning.rate:
        effort = "; stopped before" if tuning.stopped is not None else "; no rate was any use"
    return f"{judged} on held-out samples {change}{where}{effort}"


def most_moved(tuning: TuningRecord) -> list[tuple[str, float]]:
    """Weights that were trained and by what part of themselves they moved, the largest first."""
    return sorted(tuning.moved.items(), key=lambda entry: (-entry[1], entry[0]))


def not_trained(tuning: TuningRecord) -> list[tuple[str, tuple[str, ...]]]:
    """Reasons why weights stayed as they were, each with their names, most names first."""
    reasons: dict[str, list[str]] = {}
    for name, reason in tuning.frozen.items():
        reasons.setdefault(reason, []).append(name)
    ordered = sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    return [(reason, tuple(names)) for reason, names in ordered]


_PADDED = 1.1
"""MACs of whole blocks over counted MACs from which on rounding widths pays."""

_FOLLOWS = 1.05
"""Latency over MACs, both as fractions that remain, up to which the time has followed."""

_SMALL = 1e-4
"""Seconds per run below which calls of operators take most of the time."""


def doubts(report: PruneRecord) -> list[str]:
    """Warnings: latency that did not fall with the MACs, and widths that kernels round up.

    Nothing is advised that the run did, or that what was measured contradicts.
    """
    sentences = []
    kept = share(report.result.macs, report.original.macs)
    latency, wasted = report.latency, _avoidable_padding(report)
    if latency is not None and not latency.reliable:
        sentences.append(
            "The latency is not reliable: the machine is busy, runs of the original alone scatter "
            f"by {percent(latency.noise)}; {steadier(threads_of(report.provenance))}."
        )
    elif latency is not None and kept < 1 <= latency.interval[1]:
        gain = "did not fall" if latency.interval[0] >= 1 else "shows no clear gain"
        sentences.append(
            f"The MACs fell by {percent(1 - kept)}, but the measured latency {gain}{_why(report)}."
        )
    # widths at which the time falls as the MACs do are no waste
    follows = latency is not None and latency.reliable and latency.ratio <= _FOLLOWS * kept
    if wasted and not follows:
        ratios = ", ".join(f"{ratio:.2f} x with blocks of {n}" for n, ratio in wasted.items())
        sentences.append(
            "Convolution kernels compute whole blocks of channels, with these widths more than the "
            f"MACs above ({ratios}); --round-to {max(wasted)} or a latency target avoids that."
        )
    return sentences


def threads_of(provenance: Provenance | None) -> int:
    """The number of threads that a run was given; 0 where onnxruntime decided."""
    threads = provenance.machine.get("threads", "") if provenance is not None else ""
    return int(threads) if threads.isdigit() else 0


def _avoidable_padding(report: PruneRecord) -> dict[int, float]:
    """Blocks that compute much more than was counted and that the run's options left aside."""
    options = report.provenance.options if report.provenance is not None else {}
    multiple = options.get("round_to", 1)
    if LATENCY in (options.get("target") or {}):
        return {}
    rounded = multiple if isinstance(multiple, int) else 1
    return {
        block: ratio
        for block, ratio in report.padding.items()
        if ratio > _PADDED and rounded % block
    }


def _why(report: PruneRecord) -> str:
    if _avoidable_padding(report):
        return ": the widths are no multiples of the blocks that kernels compute"
    if report.latency is not None and report.latency.original < _SMALL:
        return ": a model this small spends its time on operator calls, not on arithmetic"
    return ": the time is spent elsewhere"


_GENERAL = {
    "it meets an axis of .+ that cannot be cut": "it meets an axis that cannot be cut",
    "the shape of .+ is unknown": "a shape is unknown",
    ".+ is only known at run time": "a value is only known at run time",
}
"""Reasons that name a tensor of the model, and the same without it."""


@dataclass(frozen=True)
class Reason:
    """All axes that cannot be cut for one reason.

    Attributes:
        reason: in plain words.
        axes: how many.
        parameters: elements of their tensors.
        example: the axis with the most of them.
    """

    reason: str
    axes: int
    parameters: int
    example: str


def group_refusals(refused: Iterable[Refused]) -> list[Reason]:
    """Add refusals up by reason, the most parameters first."""
    by_reason: dict[str, list[Refused]] = {}
    for refusal in refused:
        by_reason.setdefault(_general(refusal.reason), []).append(refusal)
    reasons = [_reason(text, members) for text, members in by_reason.items()]
    return sorted(reasons, key=lambda refusal: (-refusal.parameters, -refusal.axes, refusal.reason))


def _reason(text: str, members: list[Refused]) -> Reason:
    # a tensor refused along two axes counts once
    tensors: dict[str, int] = {}
    for refusal in members:
        tensors[refusal.tensor] = max(tensors.get(refusal.tensor, 0), refusal.parameters)
    largest = max(members, key=lambda refusal: refusal.parameters)
    return Reason(text, len(members), sum(tensors.values()), largest.axis)


def _general(reason: str) -> str:
    general = (text for form, text in _GENERAL.items() if re.fullmatch(form, reason))
    return next(general, reason)


Facts = list[tuple[str, str]]

_OWN_LINES = ("seed", "labels")
"""Options that are shown in lines of their own."""


def origin_facts(provenance: Provenance | None, model_file: str | Path | None) -> Facts:
    """Files that a run read and wrote, options, versions and machine.

    Args:
        provenance: of the run; None where nothing is known.
        model_file: where the result was saved; None where it was not.

    Raises:
        OSError: when the file of the result cannot be read.
    """
    facts: Facts = []
    if provenance is not None:
        facts.append(("original", _file(provenance.model or "in memory", provenance.sha256)))
    if model_file is not None:
        facts.append(("result", _file(str(model_file), file_digest(model_file))))
        data = Path(f"{model_file}.data")
        if data.is_file():
            facts.append(("its data", _file(str(data), file_digest(data))))
    if provenance is None:
        return facts
    facts.append(("seed", str(provenance.options.get("seed", 0))))
    if set_options := option_text(provenance.options):
        facts.append(("options", set_options))
    return [*facts, *machine_facts(provenance.versions, provenance.machine)]


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
        return " and ".join(f"{name}={_value(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return share_text(value)
    return str(value)


_LISTED = 24


@dataclass(frozen=True)
class DetailTable:
    """A mapping of names to values, or to several values each.

    Attributes:
        title: what it is called.
        columns: headings behind that of the names; empty for a single value each.
        rows: name and cells as text, with the number to sort by where a cell is one.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]


def detail_facts(details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of what is a single value or a list; nothing for what is empty."""
    facts = []
    for name, value in details.items():
        if _is_table(value):
            continue
        if text := _text(value):
            facts.append((_words(name), text))
    return facts


def detail_tables(details: Mapping[str, Any]) -> list[DetailTable]:
    """One table for each mapping that is not empty."""
    return [_table(name, value) for name, value in details.items() if _is_table(value)]


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _table(title: str, details: Mapping[str, Any]) -> DetailTable:
    values = list(details.values())
    if all(isinstance(row, Mapping) for row in values):
        names = tuple(dict.fromkeys(str(key) for row in values for key in row))
        cells = [[_cell(row.get(name)) for name in names] for row in values]
        columns = tuple(map(_words, names))
    else:
        columns = ()
        cells = [list(_cells(value)) for value in values]
    rows = tuple(
        (str(name), tuple(row)) for name, row in zip(details, _of_one_length(cells), strict=True)
    )
    return DetailTable(_words(title), columns, rows)


def _of_one_length(cells: list[list[tuple[str, Any]]]) -> Iterator[list[tuple[str, Any]]]:
    longest = max(map(len, cells))
    return (row + [("", "")] * (longest - len(row)) for row in cells)


def _cells(value: Any) -> Iterator[tuple[str, Any]]:
    """A short list of numbers takes a cell for each, anything else a single one."""
    if _is_list(value) and 0 < len(value) <= 3 and all(_is_number(number) for number in value):
        return map(_cell, value)
    return iter([_cell(value)])


def _cell(value: Any) -> tuple[str, Any]:
    return _text(value), float(value) if _is_number(value) else ""


def _text(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        return _text(value.tolist())
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if _is_list(value):
        more = f", ... ({len(value)} in all)" if len(value) > _LISTED else ""
        return ", ".join(_text(entry) for entry in list(value)[:_LISTED]) + more
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(name))} {_text(entry)}" for name, entry in value.items())
    return str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _words(name: str) -> str:
    return str(name).replace("_", " ")
