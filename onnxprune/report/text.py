"""The account of a run as plain tables, at most 100 columns wide."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.cost.figures import NodeCost
from onnxprune.coupling.groups import Group, Refused
from onnxprune.report.figures import (
    bar,
    count,
    durations,
    milliseconds,
    percent,
    printable,
    share,
    size,
)
from onnxprune.report.records import (
    ComparisonRecord,
    InspectionRecord,
    PruneRecord,
)
from onnxprune.report.sections import (
    COSTS,
    certificate_text,
    certificate_verdict,
    cost_rows,
    doubts,
    effort_rows,
    group_refusals,
    traced_size,
)
from onnxprune.verification.comparison import OutputComparison

T = TypeVar("T")

_WIDTH = 100
_NAME = 50
_LAYERS = 15
_BAR = 6
_GROUPS = 8
_REASONS = 5
_OUTPUTS = 8


class _Console(Console):
    """A console that leaves it to the caller what happens when nobody reads on."""

    def on_broken_pipe(self) -> None:
        """Raise what rich would turn into exit code 1.

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
        one = report.certificate
        self._title(f"{title}   {durations(report.seconds)}")
        self._costs(report)
        self._widths(report)
        self._lines(
            [
                *effort_rows(report, self.verbose),
                ("certificate", f"{certificate_verdict(one)}: {certificate_text(one)}"),
                *_quality(report),
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
            (one.name, f"{one.shown(sizes)} ({where})" if one.traced else one.shown(sizes))
            for one in COSTS
        )
        self._layers(inspection.nodes)
        self._groups(inspection.groups)
        self._refusals(inspection.refused)

    def compared(self, title: str, comparison: ComparisonRecord) -> None:
        """Print what `verify` measured."""
        self._title(title)
        table = make_table("", ">original", ">pruned", ">remains")
        for row in cost_rows(comparison.original, comparison.pruned):
            table.add_row(*row.cells())
        self._print(table)
        self._outputs(comparison.outputs)

    def note(self, text: str) -> None:
        """Print one remark."""
        self._print(text)

    def _costs(self, report: PruneRecord) -> None:
        table = make_table("", ">before", ">after", ">remains", "")
        where = traced_size(report.original)
        for row in cost_rows(report.original, report.result):
            table.add_row(*row.cells(), where if row.kind.traced else "")
        latency = report.latency
        if latency is not None:
            low, high = latency.interval
            table.add_row(
                "latency",
                milliseconds(latency.original),
                milliseconds(latency.result),
                percent(latency.ratio),
                f"{where}; between {percent(low)} and {percent(high)}",
            )
        self._print(table)
        for sentence in doubts(report):
            self._print(sentence)

    def _widths(self, report: PruneRecord) -> None:
        table = make_table("group", "kind", ">before", ">after", ">remains")
        cut = [one for one in report.groups if one.kept < one.size]
        shown = self._largest(cut, [one.size - one.kept for one in cut], _GROUPS)
        for one in shown:
            table.add_row(
                printable(one.name, _NAME),
                f"{one.kind}, inexact" if one.name in report.inexact else one.kind,
                str(one.size),
                str(one.kept),
                percent(share(one.kept, one.size)),
            )
        self._print(table)
        self._rest(len(cut) - len(shown), "groups")
        if report.inexact:
            self._print("inexact: normalisation statistics of these run over fewer entries now.")

    def _layers(self, nodes: Sequence[NodeCost]) -> None:
        table = make_table("layer", "op", ">MACs", "", ">params", ">bytes", "", ">output", "")
        letter = "#" if self.console.options.ascii_only else "█"
        most = [max((part(one) for one in nodes), default=0) for part in _BARS]
        weights = [
            sum(share(part(one), top) for part, top in zip(_BARS, most, strict=True))
            for one in nodes
        ]
        shown = self._largest(nodes, weights, _LAYERS)
        for one in shown:
            macs, bytes_, output = (
                bar(share(part(one), top), letter, _BAR)
                for part, top in zip(_BARS, most, strict=True)
            )
            table.add_row(
                printable(one.node, 24),
                printable(one.op_type, 10),
                count(one.macs),
                macs,
                count(one.parameters),
                size(one.bytes),
                bytes_,
                size(one.activations),
                output,
            )
        if nodes:
            self._print(table)
        self._rest(len(nodes) - len(shown), "layers")

    def _groups(self, groups: Sequence[Group]) -> None:
        if not groups:
            self._print("Nothing can be pruned.")
            return
        table = make_table("group that can be pruned", "kind", ">units", ">tensors", "read by")
        shown = self._largest(groups, [one.size for one in groups], _GROUPS)
        for one in shown:
            readers = list(dict.fromkeys(reading.consumer.node for reading in one.readings))
            more = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
            table.add_row(
                printable(one.name, _NAME),
                one.kind,
                str(one.size),
                str(len({owned.tensor for owned in one.owned})),
                printable(readers[0], 14) + more if readers else "-",
            )
        self._print(table)
        self._rest(len(groups) - len(shown), "groups")

    def _outputs(self, outputs: Sequence[OutputComparison]) -> None:
        if not outputs:
            return
        table = make_table("output on the samples", ">same answer", ">cosine", ">relative error")
        shown = outputs if self.verbose else outputs[:_OUTPUTS]
        for one in shown:
            table.add_row(
                printable(one.output, _NAME),
                percent(one.agreement),
                "-" if one.cosine is None else f"{one.cosine:.4f}",
                "-" if one.relative_error is None else f"{one.relative_error:.3g}",
            )
        self._print(table)
        self._rest(len(outputs) - len(shown), "outputs")

    def _refusals(self, refused: Sequence[Refused]) -> None:
        reasons = group_refusals(refused)
        if not reasons:
            return
        table = make_table("stays whole because", ">axes", ">parameters", "for example")
        shown = reasons if self.verbose else reasons[:_REASONS]
        for one in shown:
            table.add_row(
                printable(one.reason, 46),
                str(one.axes),
                count(one.parameters),
                printable(one.example, 28),
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


_BARS: tuple[Callable[[NodeCost], int], ...] = (
    lambda node: node.macs,
    lambda node: node.bytes,
    lambda node: node.activations,
)


def _quality(report: PruneRecord) -> list[tuple[str, str]]:
    """What a measure says of original and result; nothing where none was asked for."""
    one = report.quality
    if one is None:
        return []
    where = "kept out of calibration" if one.held_out else "the calibration saw them too"
    text = f"{one.original:.4g} -> {one.result:.4g}, on {one.samples} samples ({where})"
    return [(printable(one.measure, _NAME), text)]


def _dropped(dropped: dict[str, str], verbose: bool) -> list[tuple[str, str]]:
    rows = [
        ("left whole", f"{printable(name, _NAME)}: {printable(reason)}")
        for name, reason in dropped.items()
    ]
    if verbose or len(rows) <= _REASONS:
        return rows
    return [*rows[:_REASONS], ("", f"and {len(rows) - _REASONS} more groups; -v shows all")]
