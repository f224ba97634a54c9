"""What all commands do with their arguments: check outputs, choose where figures and tables go."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from onnxprune.passes.pipeline.results import PipelineResult
    from onnxprune.pruning.results import PruneResult
    from onnxprune.report.text import TextReport

STANDARD_OUTPUT = "-"

_METHOD = (
    "criterion",
    "loss",
    "compensate",
    "allocation",
    "include",
    "exclude",
    "round_to",
    "steps",
    "blocks",
    "normalised_axes",
    "lossless",
    "components",
    "augment",
    "seed",
)


def check_outputs(arguments: Namespace, *outputs: str | None, inputs: Sequence[str] = ()) -> None:
    """Make sure, before any work, that every output can be written and is no input.

    Args:
        arguments: of the command.
        *outputs: files to be written besides that of --json; None for none.
        inputs: files it reads besides models and samples.

    Raises:
        InputError: naming the path.
    """
    from onnxprune.model.save import check_writable

    protected = [*_inputs(arguments), *map(Path, inputs)]
    figures = None if arguments.json == STANDARD_OUTPUT else arguments.json
    seen: list[str] = []
    for path in (*outputs, figures):
        if path is None:
            continue
        check_writable(path)
        for other in protected:
            check_writable(path, other)
        if any(os.path.abspath(path) == os.path.abspath(one) for one in seen):
            raise InputError(f"{path}: two outputs have this name")
        seen.append(path)


def _inputs(arguments: Namespace) -> list[Path]:
    """Files that must not be overwritten: models, their external data, samples."""
    models = [arguments.model, getattr(arguments, "pruned", None)]
    data = (arguments.calibration, getattr(arguments, "labels", None))
    paths = [*models, *(f"{one}.data" for one in models if one), *data]
    return [Path(one) for one in paths if one is not None]


def method(arguments: Namespace) -> dict[str, Any]:
    """How to prune, as the API takes it."""
    return {name: getattr(arguments, name) for name in _METHOD} | runtime(arguments)


def runtime(arguments: Namespace) -> dict[str, Any]:
    """Providers and threads, as the API takes them."""
    providers: Sequence[str] = arguments.providers or ["CPUExecutionProvider"]
    return {"providers": providers, "threads": arguments.threads}


def progress(arguments: Namespace) -> Any:
    """Who is told about long loops."""
    from onnxprune.cli.progress import TerminalProgress
    from onnxprune.progress import silent

    return silent if arguments.quiet else TerminalProgress(sys.stderr)


def text_report(arguments: Namespace) -> TextReport | None:
    """Where tables go; None when standard output is to stay empty or holds the figures."""
    if arguments.quiet or arguments.json == STANDARD_OUTPUT:
        return None
    from onnxprune.report.text import TextReport, make_console

    return TextReport(make_console(sys.stdout), arguments.verbose)


def write_json(arguments: Namespace, data: dict[str, Any]) -> None:
    """Write the figures where --json says, if it does."""
    from onnxprune.model.save import write_text_atomic
    from onnxprune.report.figures import json_text

    if arguments.json is None:
        return
    text = json_text(data)
    if arguments.json == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        write_text_atomic(arguments.json, text)


def write_result(
    arguments: Namespace,
    result: PruneResult | PipelineResult,
    figures: dict[str, Any],
    texts: Mapping[str, str],
) -> None:
    """Write figures, texts, then the model: where there is a model, the rest is there too.

    Args:
        arguments: of the command; its `out` is the model's path.
        result: what is to be written.
        figures: for --json.
        texts: path -> text of files that are part of the run.

    Raises:
        InputError: when something cannot be written; then nothing is.
    """
    from onnxprune.model.save import write_text_atomic

    to_file = arguments.json if arguments.json != STANDARD_OUTPUT else None
    try:
        for path, text in texts.items():
            write_text_atomic(path, text)
        if to_file is not None:
            write_json(arguments, figures)
        result.save(arguments.out)
    except BaseException:
        # a plan without its model would look like a finished run
        for written in (*texts, *filter(None, [to_file])):
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise
    if arguments.report is not None:
        # last, because it tells the digest of the model's file
        result.save_report(arguments.report, command=arguments.words, model_file=arguments.out)
    if to_file is None:
        write_json(arguments, figures)
