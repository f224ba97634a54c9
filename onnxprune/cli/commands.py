"""One function for each command: check the outputs, call the API, write, print."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from onnxprune.report.text import TextReport
    from onnxprune.results import PruneResult

__all__ = ["apply", "inspect", "prune", "verify"]

_STANDARD_OUTPUT = "-"


def inspect(arguments: Namespace) -> None:
    """Say what can be pruned and what every layer costs."""
    from onnxprune import api

    _check_outputs(arguments)
    inspection = api.inspect(
        arguments.model, calibration=arguments.calibration, **_runtime(arguments)
    )
    _write_json(arguments, inspection.to_dict())
    if text := _text(arguments):
        text.inspected(arguments.model, inspection)


def prune(arguments: Namespace) -> None:
    """Prune a model and write it."""
    from onnxprune import api

    _check_outputs(arguments, arguments.out, arguments.plan)
    result = api.prune(
        arguments.model,
        calibration=arguments.calibration,
        target=arguments.target or None,
        criterion=arguments.criterion,
        compensate=arguments.compensate,
        allocation=arguments.allocation,
        include=arguments.include,
        exclude=arguments.exclude,
        round_to=arguments.round_to,
        normalised_axes=arguments.normalised_axes,
        lossless=arguments.lossless,
        components=arguments.components,
        augment=arguments.augment,
        seed=arguments.seed,
        progress=_progress(arguments),
        **_runtime(arguments),
    )
    _finish(arguments, result, arguments.plan)


def apply(arguments: Namespace) -> None:
    """Replay a plan and write the model."""
    from onnxprune import api
    from onnxprune.plan import Plan

    _check_outputs(arguments, arguments.out)
    plan = Plan.load(arguments.plan)
    result = api.apply(
        arguments.model,
        plan,
        calibration=arguments.calibration,
        compensate=arguments.compensate,
        progress=_progress(arguments),
        **_runtime(arguments),
    )
    text = _finish(arguments, result, None)
    planned = plan.options.get("compensate", "none")
    if (
        text is not None
        and arguments.compensate is None
        and planned != "none"
        and arguments.calibration is None
    ):
        text.note(
            f"The plan was made with --compensate {planned}; without --calibration nothing was "
            "compensated."
        )


def verify(arguments: Namespace) -> None:
    """Compare two models."""
    from onnxprune import api

    _check_outputs(arguments)
    comparison = api.verify(
        arguments.model,
        arguments.pruned,
        calibration=arguments.calibration,
        progress=_progress(arguments),
        **_runtime(arguments),
    )
    _write_json(arguments, comparison.to_dict())
    if text := _text(arguments):
        text.compared(f"{arguments.model} and {arguments.pruned}", comparison)


def _finish(arguments: Namespace, result: PruneResult, plan: str | None) -> TextReport | None:
    """Write plan and figures, then the model: where there is a model, the rest is there too."""
    from onnxprune.model.save import write_text_atomic

    figures = {"model": arguments.model, "out": arguments.out, "options": result.plan.options}
    written = figures | result.report.to_dict()
    to_file = arguments.json if arguments.json != _STANDARD_OUTPUT else None
    try:
        if plan is not None:
            write_text_atomic(plan, result.plan.to_json())
        if to_file is not None:
            _write_json(arguments, written)
        result.save(arguments.out)
    except BaseException:
        # a plan without its model would look like a finished run
        for path in (plan, to_file):
            if path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        raise
    if to_file is None:
        _write_json(arguments, written)
    text = _text(arguments)
    if text is not None:
        text.pruned(f"{arguments.model} -> {arguments.out}", result.report, result.plan)
    return text


def _check_outputs(arguments: Namespace, *outputs: str | None) -> None:
    """Make sure, before any work, that every output can be written and is no input.

    Raises:
        InputError: naming the path.
    """
    from onnxprune.model.save import check_writable

    inputs = _inputs(arguments)
    figures = None if arguments.json == _STANDARD_OUTPUT else arguments.json
    seen: list[str] = []
    for path in (*outputs, figures):
        if path is None:
            continue
        check_writable(path)
        for other in inputs:
            check_writable(path, other)
        if any(os.path.abspath(path) == os.path.abspath(one) for one in seen):
            raise InputError(f"{path}: two outputs have this name")
        seen.append(path)


def _inputs(arguments: Namespace) -> list[Path]:
    """Files that must not be overwritten: models, their external data, samples, the plan read."""
    models = [arguments.model, getattr(arguments, "pruned", None)]
    paths = [*models, *(f"{one}.data" for one in models if one), arguments.calibration]
    if arguments.command is apply:
        paths.append(arguments.plan)
    return [Path(one) for one in paths if one is not None]


def _runtime(arguments: Namespace) -> dict[str, Any]:
    providers: Sequence[str] = arguments.providers or ["CPUExecutionProvider"]
    return {"providers": providers, "threads": arguments.threads}


def _progress(arguments: Namespace) -> Any:
    from onnxprune.cli.progress import TerminalProgress
    from onnxprune.progress import silent

    return silent if arguments.quiet else TerminalProgress(sys.stderr)


def _text(arguments: Namespace) -> TextReport | None:
    """Where tables go; None when standard output is to stay empty or holds the figures."""
    if arguments.quiet or arguments.json == _STANDARD_OUTPUT:
        return None
    from onnxprune.report.text import TextReport, make_console

    return TextReport(make_console(sys.stdout), arguments.verbose)


def _write_json(arguments: Namespace, data: dict[str, Any]) -> None:
    from onnxprune.model.save import write_text_atomic

    if arguments.json is None:
        return
    text = json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"
    if arguments.json == _STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        write_text_atomic(arguments.json, text)


def _finite(data: Any) -> Any:
    """Replace what JSON has no number for by null."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
