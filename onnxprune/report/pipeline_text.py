"""Pipelines as plain tables, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from onnxprune.cost.latency.measure import Latency
from onnxprune.report.figures import durations, percent, printable, share, size
from onnxprune.report.records import PipelineRecord, Sizes, StepReport
from onnxprune.report.text import TextReport, make_table

_NAME = 30
_DOUBTFUL = 0.2


class PipelineText(TextReport):
    """Prints pipelines."""

    def ran(self, title: str, result: PipelineRecord) -> None:
        """Print what the model cost after each pass, and how far its outputs had moved."""
        self._title(title)
        headings = ("MACs", "params", "file size", "latency", "same answer", "cosine", "time")
        table = make_table("after", *(f">{one}" for one in headings))
        for step in result.steps:
            table.add_row(*_step_row(step, result.original))
        self._print(table)
        last = result.steps[-1].sizes
        self._print(f"file: {size(result.original.bytes)} -> {size(last.bytes)}")
        for step in result.steps:
            for line in _remarks(step):
                self._print(f"{_shown(step)}: {line}")

    def wrote(self, files: Iterable[Path]) -> None:
        """Print which files were written beside the model."""
        for file in files:
            self._print(f"beside it: {printable(str(file))}")


def _step_row(step: StepReport, original: Sizes) -> tuple[str, ...]:
    now = step.sizes
    agreements = [one.agreement for one in step.outputs if one.agreement is not None]
    cosines = [one.cosine for one in step.outputs if one.cosine is not None]
    return (
        _shown(step),
        percent(share(now.macs, original.macs)),
        percent(share(now.params, original.params)),
        percent(share(now.bytes, original.bytes)),
        _latency(step.latency) if step.latency is not None else "",
        percent(min(agreements)) if agreements else "",
        f"{min(cosines):.4f}" if cosines else "",
        durations(step.seconds),
    )


def _shown(step: StepReport) -> str:
    """The name of a pass, without the file or package that it comes from."""
    return printable(step.name.rpartition(":")[2], _NAME)


def _latency(measured: Latency) -> str:
    """The ratio; marked where the machine was too busy to tell it to a tenth."""
    low, high = measured.interval
    doubtful = high - low > _DOUBTFUL * measured.ratio
    return f"{'~' if doubtful else ''}{percent(measured.ratio)}"


def _remarks(step: StepReport) -> Iterator[str]:
    if step.new_interface:
        yield "has other inputs or outputs; what follows is compared with the model it made"
    if not step.modified and not step.notes:
        yield "found nothing to change"
    yield from step.notes
    if step.remark:
        yield step.remark
