"""The account of a run as plain tables, at most 100 columns wide."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.report.efforts import effort_rows
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
from onnxprune.report.reasons import group_refusals

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxprune.cost.macs import NodeCost
    from onnxprune.coupling.groups import Group, Refused
    from onnxprune.plan import Plan
    from onnxprune.report.summary import Report, Sizes
    from onnxprune.results import Comparison, Inspection
    from onnxprune.verification.comparison import OutputComparison

__all__ = ["TextReport", "make_console"]

T = TypeVar("T")

_WIDTH = 100
_NAME = 50
_LAYERS = 15
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

    def pruned(self, title: str, report: Report, plan: Plan) -> None:
        """Print what `prune` or `apply` did."""
        self._title(f"{title}   {durations(report.seconds)}")
        self._costs(report)
        self._widths(plan)
        self._lines(
            [
                *effort_rows(report, self.verbose),
                ("certificate", _certificate(report)),
                *_dropped(report.dropped, self.verbose),
            ]
        )
        self._outputs(report.outputs)
        self._refusals(report.refused)

    def inspected(self, title: str, inspection: Inspection) -> None:
        """Print what `inspect` found."""
        sizes = inspection.sizes
        self._title(title)
        self._lines(
            [
                ("MACs", f"{count(sizes.macs)} (batch {inspection.batch})"),
                ("parameters", count(sizes.params)),
                ("file size", size(sizes.bytes)),
            ]
        )
        self._layers(inspection.nodes, sizes)
        self._groups(inspection.groups)
        self._refusals(inspection.refused)

    def compared(self, title: str, comparison: Comparison) -> None:
        """Print what `verify` measured."""
        self._title(title)
        table = _table("", ">original", ">pruned", ">remains")
        for name, before, after in _size_rows(comparison.original, comparison.pruned):
            shown = size if name == "file size" else count
            table.add_row(name, shown(before), shown(after), percent(share(after, before)))
        self._print(table)
        self._outputs(comparison.outputs)

    def note(self, text: str) -> None:
        """Print one remark."""
        self._print(text)

    def _costs(self, report: Report) -> None:
        table = _table("", ">before", ">after", ">remains", "")
        batch = f"batch {report.batch}"
        for name, before, after in _size_rows(report.original, report.result):
            shown = size if name == "file size" else count
            note = batch if name == "MACs" else ""
            table.add_row(name, shown(before), shown(after), percent(share(after, before)), note)
        latency = report.latency
        if latency is not None:
            table.add_row(
                "latency",
                milliseconds(latency.original),
                milliseconds(latency.result),
                percent(latency.ratio),
                f"{batch}; quartiles {percent(latency.low)} to {percent(latency.high)}",
            )
        self._print(table)
        fell = 1 - share(report.result.macs, report.original.macs)
        if latency is not None and fell > 0 and latency.high >= 1:
            gain = "did not fall" if latency.low >= 1 else "shows no clear gain"
            self._print(f"The MACs fell by {percent(fell)}, but the measured latency {gain}.")

    def _widths(self, plan: Plan) -> None:
        table = _table("group", "kind", ">before", ">after", ">remains")
        shown = self._largest(plan.groups, [len(one.removed) for one in plan.groups], _GROUPS)
        for one in shown:
            left = one.size - len(one.removed)
            table.add_row(
                printable(one.id, _NAME),
                f"{one.kind}, inexact" if one.inexact else one.kind,
                str(one.size),
                str(left),
                percent(share(left, one.size)),
            )
        self._print(table)
        self._rest(len(plan.groups) - len(shown), "groups")
        if any(one.inexact for one in plan.groups):
            self._print("inexact: normalisation statistics of these run over fewer entries now.")

    def _layers(self, nodes: Sequence[NodeCost], sizes: Sizes) -> None:
        table = _table("layer", "op", ">MACs", ">share", "", ">parameters", "")
        letter = "#" if self.console.options.ascii_only else "█"
        macs = max((one.macs for one in nodes), default=0)
        parameters = max((one.parameters for one in nodes), default=0)
        weights = [share(one.macs, macs) + share(one.parameters, parameters) for one in nodes]
        shown = self._largest(nodes, weights, _LAYERS)
        for one in shown:
            table.add_row(
                printable(one.node, 30),
                printable(one.op_type, 14),
                count(one.macs),
                percent(share(one.macs, sizes.macs)),
                bar(share(one.macs, macs), letter),
                count(one.parameters),
                bar(share(one.parameters, parameters), letter),
            )
        if nodes:
            self._print(table)
        self._rest(len(nodes) - len(shown), "layers")

    def _groups(self, groups: Sequence[Group]) -> None:
        if not groups:
            self._print("Nothing can be pruned.")
            return
        table = _table("group that can be pruned", "kind", ">units", ">tensors", "read by")
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
        table = _table("output on the samples", ">same answer", ">cosine", ">relative error")
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
        table = _table("stays whole because", ">axes", ">parameters", "for example")
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


def _table(*headings: str) -> Table:
    """A table without lines; headings that start with > stand over numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", no_wrap=right
        )
    return table


def _size_rows(before: Sizes, after: Sizes) -> list[tuple[str, int, int]]:
    return [
        ("MACs", before.macs, after.macs),
        ("parameters", before.params, after.params),
        ("file size", before.bytes, after.bytes),
    ]


def _certificate(report: Report) -> str:
    one = report.certificate
    verdict = "holds" if one.holds else "FAILS"
    inputs = "1 input" if one.runs == 1 else f"{one.runs} inputs"
    return (
        f"{verdict}: cut and masked model agree within {one.error:.2g} (allowed "
        f"{one.tolerance:.0e}) on {inputs}; the original's outputs moved by {percent(one.effect)}"
    )


def _dropped(dropped: dict[str, str], verbose: bool) -> list[tuple[str, str]]:
    rows = [
        ("left whole", f"{printable(name, _NAME)}: {printable(reason)}")
        for name, reason in dropped.items()
    ]
    if verbose or len(rows) <= _REASONS:
        return rows
    return [*rows[:_REASONS], ("", f"and {len(rows) - _REASONS} more groups; -v shows all")]
