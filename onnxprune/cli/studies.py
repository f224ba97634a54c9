"""The commands that run for long: each goes on where an earlier run of it stopped."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cli.shared import STANDARD_OUTPUT, check_outputs, method, progress, write_json
from onnxprune.errors import InputError, TargetUnreachable

if TYPE_CHECKING:
    from onnxprune.pruning.studies.sensitivity_result import Sensitivity
    from onnxprune.report.study_text import StudyText


def sweep(arguments: Namespace) -> None:
    """Prune to many budgets and draw the trade-off curve."""
    from onnxprune.pruning.studies import sweep as sweeping

    check_outputs(arguments)
    try:
        found = sweeping.sweep(
            arguments.model,
            calibration=arguments.calibration,
            targets=arguments.target or sweeping.TARGETS,
            labels=arguments.labels,
            baselines=sweeping.BASELINES if arguments.baselines else (),
            folder=arguments.out,
            save=arguments.save,
            measure_latency=arguments.latency,
            progress=progress(arguments),
            **method(arguments),
        )
    except KeyboardInterrupt:
        _stopped(Path(arguments.out) / "sweep.json")
        raise
    write_json(arguments, found.to_dict())
    if text := _text(arguments):
        text.swept(f"{arguments.model} -> {arguments.out}", found)
    if not any(one.done for one in found.points):
        raise TargetUnreachable(f"no budget can be reached: {found.points[-1].reason}")


def sensitivity(arguments: Namespace) -> None:
    """Cut each group alone, or put together what was measured in parts."""
    from onnxprune.model.save import write_text_atomic

    found = _merged(arguments) if arguments.merge else _measured(arguments)
    named = arguments.model or ", ".join(arguments.merge)
    if arguments.html is not None:
        write_text_atomic(arguments.html, found.to_html(Path(named).name))
    if arguments.merge or arguments.json == STANDARD_OUTPUT:
        write_json(arguments, found.to_dict())
    if text := _text(arguments):
        text.sensed(named, found)


def _measured(arguments: Namespace) -> Sensitivity:
    from onnxprune.pruning.studies import sensitivity as sensing

    if arguments.model is None or arguments.calibration is None:
        raise InputError("give MODEL and --calibration, or --merge with files to put together")
    check_outputs(arguments, arguments.html)
    file = arguments.json if arguments.json != STANDARD_OUTPUT else None
    try:
        return sensing.sensitivity(
            arguments.model,
            calibration=arguments.calibration,
            keep=arguments.keep or sensing.KEEP,
            labels=arguments.labels,
            shard=arguments.shard,
            file=file,
            progress=progress(arguments),
            **method(arguments),
        )
    except KeyboardInterrupt:
        if file is not None:
            _stopped(Path(file))
        raise


def _merged(arguments: Namespace) -> Sensitivity:
    from onnxprune.model.save import check_writable
    from onnxprune.pruning.studies.sensitivity_result import Sensitivity

    given = ("model", "calibration", "labels", "keep", "shard")
    if any(getattr(arguments, name) is not None for name in given):
        raise InputError(
            "--merge measures nothing: leave out MODEL, --calibration, --labels, --keep, --shard"
        )
    check_outputs(arguments, arguments.html)
    for part in arguments.merge if arguments.html is not None else ():
        check_writable(arguments.html, Path(part))
    first, *others = map(Sensitivity.load, arguments.merge)
    return first.merge(*others)


def _stopped(file: Path) -> None:
    """Say what an interrupted run leaves behind.

    Raises:
        KeyboardInterrupt: with what to say, when there is something.
    """
    if file.exists():
        raise KeyboardInterrupt(f"{file} holds what was finished; the same command goes on there")


def _text(arguments: Namespace) -> StudyText | None:
    """Where tables go; None when standard output is to stay empty or holds the figures."""
    if arguments.quiet or arguments.json == STANDARD_OUTPUT:
        return None
    from onnxprune.report.study_text import StudyText
    from onnxprune.report.text import make_console

    return StudyText(make_console(sys.stdout), arguments.verbose)
