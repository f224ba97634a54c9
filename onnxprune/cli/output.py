"""Where results of commands go: files, checked before any work, figures as JSON, tables."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.cli import flags
from onnxprune.cli.flags import STANDARD_OUTPUT
from onnxprune.errors import InputError
from onnxprune.options import READERS, RUNTIME_OPTIONS

if TYPE_CHECKING:
    from onnxprune.pruning.results import PruneResult
    from onnxprune.report.text import TextReport


def check(arguments: Namespace, *outputs: str | None, inputs: Sequence[str] = ()) -> None:
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
        if os.path.abspath(path) in seen:
            raise InputError(f"{path}: two outputs have this name")
        seen.append(os.path.abspath(path))


def _inputs(arguments: Namespace) -> list[Path]:
    """Files that must not be overwritten: models, their external data, samples."""
    models = [arguments.model, getattr(arguments, "pruned", None)]
    data = (arguments.calibration, getattr(arguments, "labels", None))
    paths = [*models, *(f"{model}.data" for model in models if model), *data]
    return [Path(path) for path in paths if path is not None]


def context(arguments: Namespace) -> dict[str, Any]:
    """Samples, progress callback, providers and threads, as the functions of the API take them."""
    from onnxprune.cli.progress import TerminalProgress
    from onnxprune.progress import silent

    return {
        "calibration": samples(arguments),
        "progress": silent if arguments.quiet else TerminalProgress(sys.stderr),
        **flags.values(arguments, RUNTIME_OPTIONS),
    }


def samples(arguments: Namespace) -> Any:
    """Samples as the functions of the API take them; None without.

    Raises:
        InputError: for states without samples, or options of readers that cannot be used.
    """
    from onnxprune.calibration.readers import reader_of

    source = reader_of(arguments.calibration, flags.values(arguments, READERS))
    if arguments.state is None:
        return source
    if source is None:
        raise InputError("--state says how sequences are fed; give these as --calibration")
    from onnxprune.calibration.closed_loop import ClosedLoop

    return ClosedLoop(source, arguments.state)


def printer(arguments: Namespace) -> TextReport | None:
    """What prints tables; None when standard output is to stay empty or holds the figures."""
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


def finish_prune(
    arguments: Namespace, result: PruneResult, plan: str | None = None
) -> TextReport | None:
    """Write everything, the plan too if it is given a file, and print the tables."""
    figures = {"model": arguments.model, "out": arguments.out, "options": result.plan.options}
    _write_result(arguments, result, figures | result.report.to_dict(), plan)
    text = printer(arguments)
    if text is not None:
        text.pruned(f"{arguments.model} -> {arguments.out}", result.report)
    return text


def finish_passes(arguments: Namespace, result: PruneResult, plan: str | None = None) -> None:
    """Do the same for a pipeline."""
    figures = {"model": arguments.model, "out": arguments.out}
    _write_result(arguments, result, figures | result.to_dict(), plan)
    if text := printer(arguments):
        text.ran(f"{arguments.model} -> {arguments.out}", result)
        text.wrote(result.files_beside(arguments.out))


def stopped(file: Path) -> None:
    """Say what an interrupted study has written.

    Raises:
        KeyboardInterrupt: with the message, when the file exists.
    """
    if file.exists():
        raise KeyboardInterrupt(f"{file} holds what was finished; the same command goes on there")


def _write_result(
    arguments: Namespace, result: PruneResult, figures: dict[str, Any], plan: str | None
) -> None:
    """Write figures and plan, then the model: where there is a model, the rest is there too.

    Raises:
        InputError: when something cannot be written; then nothing is.
    """
    from onnxprune.model.save import write_text_atomic

    to_file = arguments.json if arguments.json != STANDARD_OUTPUT else None
    try:
        if plan is not None:
            write_text_atomic(plan, result.plan.to_json())
        if to_file is not None:
            write_json(arguments, figures)
        result.save(arguments.out)
    except BaseException:
        # a plan without its model would look like a finished run
        for written in filter(None, (plan, to_file)):
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise
    if arguments.report is not None:
        # last, because it tells the digest of the model's file
        result.save_report(arguments.report, command=arguments.words, model_file=arguments.out)
    if to_file is None:
        write_json(arguments, figures)
