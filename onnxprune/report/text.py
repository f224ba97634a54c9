"""Results as plain tables, at most 100 columns wide."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.cost.figures import NodeCost
from onnxprune.cost.latency.measure import steadier
from onnxprune.coupling.groups import Group, Refused
from onnxprune.options import target_text
from onnxprune.report.figures import (
    bar,
    count,
    decimals,
    durations,
    fine_percent,
    kind_label,
    milliseconds,
    percent,
    printable,
    quality_value,
    share,
    significant,
    size,
)
from onnxprune.report.records import (
    ComparisonRecord,
    GroupSensitivity,
    InspectionRecord,
    PipelineRecord,
    PruneRecord,
    SensitivityRecord,
    Sizes,
    StepReport,
    SweepPointRecord,
    SweepRecord,
    TuningRecord,
)
from onnxprune.report.sections import (
    COSTS,
    certificate_text,
    certificate_verdict,
    changed_inputs,
    cost_rows,
    cost_text,
    doubts,
    group_refusals,
    latency_interval,
    latency_size,
    left_out,
    most_moved,
    not_trained,
    refit_summary,
    remaining,
    summarise,
    threads_of,
    traced_size,
    tuning_text,
)
from onnxprune.verification.comparison import OutputComparison
from onnxprune.verification.quality import Quality

T = TypeVar("T")
Row = tuple[str, str]

# columns of names
_WIDTH = 100
_NAME = 50
_GROUP_NAME = 32
_PASS_NAME = 30
_REASON = 60
_BAR = 6

# lines of lists that are not verbose
_LAYERS = 15
_GROUPS = 8
_SENSITIVE = 30
_REASONS = 5
_OUTPUTS = 8
_BLOCKS = 3

_STEP_COSTS = tuple(kind for kind in COSTS if kind.name in ("macs", "params", "size"))
_SWEEP_COSTS = ("macs", "params", "size", "memory")

_BARS: tuple[Callable[[NodeCost], int], ...] = (
    lambda node: node.macs,
    lambda node: node.bytes,
    lambda node: node.activations,
)


class _Console(Console):
    """A console that leaves a broken pipe to the caller."""

    def on_broken_pipe(self) -> None:
        """Raise the error, which rich would turn into exit code 1.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError


def make_console(file: TextIO | None = None) -> Console:
    """Return a console: colour only on terminals that want it, and never over 100 columns."""
    stream = file or sys.stdout
    console = _Console(file=stream, markup=False, emoji=False, highlight=False)
    width = min(console.width, _WIDTH) if stream.isatty() else _WIDTH
    return _Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


@dataclass(frozen=True)
class TextReport:
    """Prints results.

    Attributes:
        console: where to.
        verbose: show lists in full.
    """

    console: Console
    verbose: bool = False

    def pruned(self, title: str, report: PruneRecord) -> None:
        """Print what `prune` or `apply` did."""
        certificate = report.certificate
        self._title(f"{title}   {durations(report.seconds)}")
        self._warnings(report.warnings)
        self._costs(report)
        self._widths(report)
        self._lines(
            [
                *_effort(report, self.verbose),
                (
                    "certificate",
                    f"{certificate_verdict(certificate)}: {certificate_text(certificate)}",
                ),
                *_quality(report.quality),
                *_dropped(report.dropped, self.verbose),
            ]
        )
        self._outputs(report.outputs)
        self._refusals(report.refused)

    def inspected(self, title: str, inspection: InspectionRecord) -> None:
        """Print what `inspect` found."""
        sizes = inspection.sizes
        where = traced_size(sizes)
        self._title(title)
        self._lines(
            (kind.label, cost_text(kind, sizes) + (f" ({where})" if kind.traced else ""))
            for kind in COSTS
        )
        self._layers(inspection.nodes)
        self._groups(inspection.groups)
        self._refusals(inspection.refused)

    def compared(self, title: str, comparison: ComparisonRecord) -> None:
        """Print what `verify` measured."""
        self._title(title)
        self._warnings(comparison.warnings)
        table = make_table("", ">original", ">pruned", ">remains")
        for row in cost_rows(comparison.original, comparison.pruned):
            table.add_row(*row.cells())
        self._print(table)
        self._lines(_quality(comparison.quality, fitted=False))
        self._outputs(comparison.outputs)

    def ran(self, title: str, result: PipelineRecord) -> None:
        """Print what the model costs after each pass, and how far its outputs have moved.

        A run of one pruning is printed as `pruned` does.
        """
        if len(result.steps) == 1 and (report := result.steps[0].report) is not None:
            self.pruned(title, report)
            return
        self._title(title)
        self._warnings(result.warnings)
        headings = ("MACs", "params", "file size", "latency", "same answer", "cosine", "time")
        table = make_table("after", *(f">{heading}" for heading in headings))
        for step in result.steps:
            table.add_row(*_step_row(step, result.original))
        self._print(table)
        last = result.steps[-1].sizes
        self._print(f"file: {size(result.original.bytes)} -> {size(last.bytes)}")
        if any(step.latency is not None and not step.latency.reliable for step in result.steps):
            self._print(_busy(threads_of(result.provenance)))
        quality = result.steps[-1].quality
        self._lines(_quality(quality))
        for step in result.steps:
            if step.tuning is not None:
                self._lines(_tuning(step.tuning, self.verbose))
            for line in _remarks(step):
                self._print(f"{_pass_name(step)}: {line}")

    def wrote(self, files: Iterable[Path]) -> None:
        """Print which files were written beside the model."""
        for file in files:
            self._print(f"written beside it: {printable(str(file))}")

    def swept(self, title: str, sweep: SweepRecord) -> None:
        """Print a sweep, one line for each point."""
        self._title(title)
        self._warnings(sweep.warnings)
        headings = [f">{kind_label(kind)}" for kind in _SWEEP_COSTS]
        best = sweep.pareto()
        done = [point for point in sweep.points if point.done]
        quality = next((point.quality for point in done if point.quality is not None), None)
        # all of them do not fit 100 columns
        last = [">same answer", ">divergence"]
        last = [*last, ">time"] if quality is None else [f">{quality['measure']}", *last]
        table = make_table("target", *headings, ">latency", *last, "")
        for point in done:
            table.add_row(*_point_row(point), "" if point in best else "*")
        if done:
            self._print(table)
        if quality is not None:
            original = f"{quality['original']:.4g} {quality.get('unit', '%')}".rstrip()
            self._print(
                f"{quality['measure']}: the original has {original}, on "
                f"{quality['samples']} samples (also used for calibration)."
            )
        if any(point.latency and not point.latency.get("reliable", True) for point in done):
            self._print(_busy(int(sweep.study.options.get("threads", 0))))
        if len(done) > len(best):
            self._print("*: dominated; another point costs no more and diverges less.")
        for point in sweep.points:
            if not point.done:
                reason = printable(point.reason)
                self._print(f"{target_text(point.target)} {point.status}: {reason}")

    def sensed(self, title: str, study: SensitivityRecord) -> None:
        """Print the groups of a sensitivity study, the most sensitive first."""
        self._title(title)
        self._warnings(study.warnings)
        rows = [row for row in study.ranked() if row.cuts]
        keeps = [cut.keep for cut in rows[0].cuts] if rows else []
        headings = [f">{percent(keep).replace('.0', '')}" for keep in keeps]
        drops = any(cut.drop is not None for row in rows for cut in row.cuts)
        measured = "drop of quality" if drops else "divergence"
        table = make_table(
            f"group: {measured} when cut to", "kind", ">units", *headings, ">saves", ""
        )
        # parameters for a model that has no MACs
        kind = "macs" if study.costs["macs"] else "params"
        shown = rows if self.verbose else rows[:_SENSITIVE]
        for row in shown:
            table.add_row(*_sensitivity_row(row, kind, study.costs))
        if rows:
            self._print(table)
            self._print(f"saves: {kind_label(kind)} of the whole model at the smallest width.")
        self._rest(len(rows) - len(shown), "groups")
        for row in study.rows:
            if not row.cuts:
                reason = printable(row.reason, None if self.verbose else _REASON)
                self._print(f"{printable(row.group, _GROUP_NAME)} was not cut: {reason}")
        if study.missing:
            names = study.missing if self.verbose else study.missing[:_SENSITIVE]
            more = "" if len(names) == len(study.missing) else " ..."
            listed = ", ".join(printable(name, _GROUP_NAME) for name in names)
            self._print(f"groups not measured yet ({len(study.missing)}): {listed}{more}")

    def note(self, text: str) -> None:
        """Print one remark."""
        self._print(text)

    def _warnings(self, warnings: Iterable[str]) -> None:
        for text in warnings:
            self._print(f"WARNING: {printable(text)}")

    def _costs(self, report: PruneRecord) -> None:
        table = make_table("", ">before", ">after", ">remains", "")
        where = traced_size(report.original)
        for row in cost_rows(report.original, report.result):
            table.add_row(*row.cells(), where if row.kind.traced else "")
        latency = report.latency
        if latency is not None:
            table.add_row(
                "latency",
                milliseconds(latency.original),
                milliseconds(latency.result),
                percent(latency.ratio),
                f"{latency_size(report)}; {latency_interval(latency)}",
            )
        self._print(table)
        for sentence in doubts(report):
            self._print(sentence)

    def _widths(self, report: PruneRecord) -> None:
        table = make_table("group", "kind", ">before", ">after", ">remains")
        cut = [group for group in report.groups if group.kept < group.size]
        shown = self._largest(cut, [group.size - group.kept for group in cut], _GROUPS)
        for group in shown:
            table.add_row(
                printable(group.name, _NAME),
                f"{group.kind}, inexact" if group.name in report.inexact else group.kind,
                str(group.size),
                str(group.kept),
                percent(share(group.kept, group.size)),
            )
        self._print(table)
        self._rest(len(cut) - len(shown), "groups")
        tensors = dict.fromkeys(group.name.rpartition("[")[0] for group in shown)
        for tensor in tensors:
            if tensor in report.inlined:
                self._print(printable(f"{tensor} is {report.inlined[tensor]}."))
        if report.inexact:
            self._print(
                "inexact: normalisation statistics of these groups are now computed over fewer "
                "entries."
            )

    def _layers(self, nodes: Sequence[NodeCost]) -> None:
        table = make_table("layer", "op", ">MACs", "", ">params", ">bytes", "", ">output", "")
        letter = "#" if self.console.options.ascii_only else "█"
        most = [max((part(node) for node in nodes), default=0) for part in _BARS]
        weights = [
            sum(share(part(node), top) for part, top in zip(_BARS, most, strict=True))
            for node in nodes
        ]
        shown = self._largest(nodes, weights, _LAYERS)
        for node in shown:
            macs, bytes_, output = (
                bar(share(part(node), top), letter, _BAR)
                for part, top in zip(_BARS, most, strict=True)
            )
            table.add_row(
                printable(node.node, 24),
                printable(node.op_type, 10),
                count(node.macs),
                macs,
                count(node.parameters),
                size(node.bytes),
                bytes_,
                size(node.activations),
                output,
            )
        if nodes:
            self._print(table)
        self._rest(len(nodes) - len(shown), "layers")

    def _groups(self, groups: Sequence[Group]) -> None:
        if not groups:
            self._print("Nothing can be pruned.")
            return
        table = make_table("group that can be pruned", "kind", ">units", ">tensors", "consumers")
        shown = self._largest(groups, [group.size for group in groups], _GROUPS)
        for group in shown:
            readers = list(dict.fromkeys(reading.consumer.node for reading in group.readings))
            more = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
            table.add_row(
                printable(group.name, _NAME),
                group.kind,
                str(group.size),
                str(len({owned.tensor for owned in group.owned})),
                printable(readers[0], 14) + more if readers else "-",
            )
        self._print(table)
        self._rest(len(groups) - len(shown), "groups")

    def _outputs(self, outputs: Sequence[OutputComparison]) -> None:
        if not outputs:
            return
        table = make_table(
            "output", ">same answer", ">if constant", ">kappa", ">R2", ">cosine", ">relative error"
        )
        shown = outputs if self.verbose else outputs[:_OUTPUTS]
        for output in shown:
            table.add_row(
                printable(output.output, _NAME),
                percent(output.agreement),
                percent(output.constant),
                decimals(output.kappa),
                decimals(output.r2),
                decimals(output.cosine),
                significant(output.relative_error),
            )
        self._print(table)
        self._rest(len(outputs) - len(shown), "outputs")

    def _refusals(self, refused: Sequence[Refused]) -> None:
        reasons = group_refusals(refused)
        if not reasons:
            return
        table = make_table("not pruned because", ">axes", ">parameters", "example")
        shown = reasons if self.verbose else reasons[:_REASONS]
        for reason in shown:
            table.add_row(
                printable(reason.reason, 46),
                str(reason.axes),
                count(reason.parameters),
                printable(reason.example, 28),
            )
        self._print(table)
        self._rest(len(reasons) - len(shown), "reasons")

    def _largest(self, items: Sequence[T], sizes: Sequence[float], limit: int) -> list[T]:
        """The largest items in their own order; all of them when verbose."""
        if self.verbose or len(items) <= limit:
            return list(items)
        order = sorted(range(len(items)), key=lambda index: -sizes[index])
        return [items[index] for index in sorted(order[:limit])]

    def _rest(self, number: int, what: str) -> None:
        if number > 0:
            self._write(Text(f"and {number} more {what}; -v shows all", "dim"))

    def _title(self, text: str) -> None:
        self._write(Text(printable(text), "bold", overflow="fold"))

    def _lines(self, rows: Iterable[tuple[str, str]]) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def _print(self, what: Table | str) -> None:
        self.console.file.write("\n")
        self._write(what)

    def _write(self, what: Table | Text | str) -> None:
        """Print without the blanks that rich fills its lines with."""
        with self.console.capture() as captured:
            self.console.print(what)
        lines = captured.get().splitlines()
        self.console.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def make_table(*headings: str) -> Table:
    """A table without lines; headings that start with > stand over numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", no_wrap=right
        )
    return table


def _step_row(step: StepReport, original: Sizes) -> tuple[str, ...]:
    worst = summarise(step.outputs)
    return (
        _pass_name(step),
        *(percent(remaining(kind, original, step.sizes)) for kind in _STEP_COSTS),
        _latency(step),
        percent(worst.agreement) if worst.agreement is not None else "",
        decimals(worst.cosine) if worst.cosine is not None else "",
        durations(step.seconds),
    )


def _pass_name(step: StepReport) -> str:
    """The name of a pass, without the file or package that it comes from."""
    return printable(step.name.rpartition(":")[2], _PASS_NAME)


def _busy(threads: int) -> str:
    return f"~: not reliable, the machine was busy; {steadier(threads)}."


def _latency(step: StepReport) -> str:
    """The ratio; marked where the machine was too busy to measure it."""
    if step.latency is None:
        return ""
    return f"{'' if step.latency.reliable else '~'}{percent(step.latency.ratio)}"


def _remarks(step: StepReport) -> Iterator[str]:
    if step.new_interface:
        yield "changes inputs or outputs: later passes are compared with its result"
    if not step.modified and not step.notes:
        yield "found nothing to change"
    yield from step.notes
    if step.remark:
        yield step.remark


def _point_row(point: SweepPointRecord) -> list[str]:
    costs = [percent(point.remains(kind)) for kind in _SWEEP_COSTS]
    latency = "-"
    if point.latency is not None:
        # sweeps of older versions do not say
        mark = "" if point.latency.get("reliable", True) else "~"
        latency = f"{mark}{percent(point.latency['ratio'])}"
    agreements = [out["agreement"] for out in point.outputs if out.get("agreement") is not None]
    last = [percent(min(agreements, default=None)), significant(point.divergence)]
    if point.quality is None:
        last = [*last, f"{point.seconds:.1f} s"]
    else:
        last = [quality_value(point.quality["result"], point.quality.get("unit", "%")), *last]
    return [target_text(point.target), *costs, latency, *last]


def _sensitivity_row(row: GroupSensitivity, kind: str, costs: Mapping[str, int]) -> list[str]:
    least = min(row.cuts, key=lambda cut: cut.keep)
    return [
        printable(row.group, _GROUP_NAME),
        row.kind,
        str(row.units),
        *(significant(cut.divergence if cut.drop is None else cut.drop) for cut in row.cuts),
        percent(share(least.saved[kind], costs[kind])),
        printable(next((cut.reason for cut in row.cuts if cut.reason), ""), 20),
    ]


def _effort(report: PruneRecord, verbose: bool) -> list[Row]:
    """Blocks, allocation, re-fitted layers, and what was done differently from what was asked."""
    rows = [*_blocks(report.blocks, report.depths, verbose)]
    rows += _allocation(report.allocation, report.trials, verbose)
    rows += _fits(report, verbose)
    rows += _tuning(report.tuning, verbose)
    if report.unmeasured and verbose:
        names = [printable(name, _NAME) for name in report.unmeasured]
        rows.append(("not judged by", f"outputs that are no floats: {', '.join(names)}"))
    inputs = changed_inputs(report, None if verbose else _BLOCKS)
    rows += [("inputs", inputs)] if inputs else []
    return [*rows, ("note", printable(report.note))] if report.note else rows


def _blocks(removed: Sequence[str], depths: Mapping[int, float], verbose: bool) -> list[Row]:
    """How many residual blocks were removed, and the divergence of other numbers."""
    if not (removed or depths):
        return []
    names = [printable(name, _NAME) for name in (removed if verbose else removed[:_BLOCKS])]
    names += ["..."] if len(names) < len(removed) else []
    text = f"{len(removed)} removed" + (f" ({', '.join(names)})" if removed else "")
    if len(removed) in depths:
        text += f": divergence {significant(depths[len(removed)])}"
    others = [
        f"{significant(value)} with {number}"
        for number, value in sorted(depths.items())
        if number != len(removed)
    ]
    return [("blocks", f"{text}; {', '.join(others)}" if others else text)]


def _allocation(name: str, trials: Mapping[str, float], verbose: bool) -> list[Row]:
    """Which allocation was chosen; nothing where there was no choice."""
    if not trials:
        return []
    text = f"'{name}', the best of {len(trials)}: divergence {significant(trials[name])}"
    if verbose:
        others = sorted((value, other) for other, value in trials.items() if other != name)
        return [
            ("allocation", f"{text}; the others:"),
            *(("", f"{other}: {significant(value)}") for value, other in others),
        ]
    finite = [value for other, value in trials.items() if other != name and math.isfinite(value)]
    if finite:
        text += f", the others {significant(min(finite))}"
        text += f" to {significant(max(finite))}" if len(finite) > 1 else ""
    return [("allocation", text)]


def _fits(report: PruneRecord, verbose: bool) -> list[Row]:
    """How many layers were re-fitted, to what effect, and why others were not."""
    fits = report.repairs
    rows = [("least squares", refit_summary(fits))] if fits else []
    for fit in fits if verbose else ():
        if fit.solved:
            errors = f"{fine_percent(fit.before)} -> {fine_percent(fit.after)}"
            rows.append(("", f"{printable(fit.node, _NAME)}: {errors}"))
    for group in left_out(fits):
        part = "" if group.share is None else f" ({percent(group.share)} of the MACs)"
        rows.append(("not re-fitted", _named(group.reason, group.nodes, verbose) + part))
    for title, nodes in (
        ("not made up for", report.unfolded),
        ("curves estimated", report.estimated),
    ):
        reasons: dict[str, list[str]] = {}
        for node, reason in nodes.items():
            reasons.setdefault(reason, []).append(node)
        rows += [(title, _named(*entry, verbose)) for entry in reasons.items()]
    return rows


def _tuning(tuning: TuningRecord | None, verbose: bool) -> list[Row]:
    """What fine-tuning came to, which weights moved most, and which were not trained."""
    if tuning is None:
        return []
    rows = [("fine-tuned", tuning_text(tuning))]
    if verbose and tuning.probes:
        probes = [f"{rate:g}: {significant(value)}" for rate, value in tuning.probes.items()]
        rows.append(("", f"after a few steps, by learning rate: {', '.join(probes)}"))
    moved = most_moved(tuning)
    if moved and tuning.best:
        shown = moved if verbose else moved[:_BLOCKS]
        names = [f"{printable(name, _NAME)} {fine_percent(part)}" for name, part in shown]
        names += ["..."] if len(shown) < len(moved) else []
        rows.append(("moved most", ", ".join(names)))
    rows += [("not trained", _named(*entry, verbose)) for entry in not_trained(tuning)]
    return rows


def _named(reason: str, nodes: Sequence[str], verbose: bool) -> str:
    """A reason with the nodes that it is about."""
    names = [printable(node, _NAME) for node in nodes]
    shown = names if verbose else names[:1]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"{printable(reason)}: {', '.join(shown)}{more}"


def _quality(quality: Quality | None, *, fitted: bool = True) -> list[Row]:
    """The measured quality of original and result; nothing where none was asked for."""
    if quality is None:
        return []
    where = " (held out)" if quality.held_out else " (also used for calibration)"
    text = f"{quality.original:.4g} -> {quality.result:.4g}, on {quality.samples} samples"
    return [(printable(quality.measure, _NAME), text + (where if fitted else ""))]


def _dropped(dropped: Mapping[str, str], verbose: bool) -> list[Row]:
    rows = [
        ("not pruned", f"{printable(name, _NAME)}: {printable(reason)}")
        for name, reason in dropped.items()
    ]
    if verbose or len(rows) <= _REASONS:
        return rows
    return [*rows[:_REASONS], ("", f"and {len(rows) - _REASONS} more groups; -v shows all")]
