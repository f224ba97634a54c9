"""One function for each command: check the outputs, call the API, write, print."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from onnxprune.cli import pipelines
from onnxprune.cli.shared import (
    check_outputs,
    method,
    progress,
    runtime,
    text_report,
    write_json,
    write_result,
)

if TYPE_CHECKING:
    from onnxprune.pruning.results import PruneResult
    from onnxprune.report.text import TextReport


def inspect(arguments: Namespace) -> None:
    """Say what can be pruned and what every layer costs."""
    from onnxprune import api

    check_outputs(arguments, arguments.svg)
    inspection = api.inspect(
        arguments.model, calibration=arguments.calibration, **runtime(arguments)
    )
    if arguments.svg is not None:
        inspection.save_svg(arguments.svg, os.path.basename(arguments.model))
    write_json(arguments, inspection.to_dict())
    if text := text_report(arguments):
        text.inspected(arguments.model, inspection)


def prune(arguments: Namespace) -> None:
    """Prune a model and write it."""
    from onnxprune import api

    if pipelines.is_pipeline(arguments):
        pipelines.run(arguments)
        return
    check_outputs(arguments, arguments.out, arguments.plan, arguments.report)
    result = api.prune(
        arguments.model,
        calibration=arguments.calibration,
        target=arguments.target or None,
        max_drop=arguments.max_drop,
        labels=arguments.labels,
        metric=arguments.metric,
        progress=progress(arguments),
        **method(arguments),
    )
    _finish(arguments, result, arguments.plan)


def apply(arguments: Namespace) -> None:
    """Replay a plan and write the model."""
    from onnxprune import api
    from onnxprune.pruning.plan import Plan

    check_outputs(arguments, arguments.out, arguments.report, inputs=[arguments.plan])
    plan = Plan.load(arguments.plan)
    if plan.steps:
        pipelines.repeat(arguments, plan)
        return
    result = api.apply(
        arguments.model,
        plan,
        calibration=arguments.calibration,
        compensate=arguments.compensate,
        progress=progress(arguments),
        **runtime(arguments),
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

    check_outputs(arguments)
    comparison = api.verify(
        arguments.model,
        arguments.pruned,
        calibration=arguments.calibration,
        progress=progress(arguments),
        **runtime(arguments),
    )
    write_json(arguments, comparison.to_dict())
    if text := text_report(arguments):
        text.compared(f"{arguments.model} and {arguments.pruned}", comparison)


def _finish(arguments: Namespace, result: PruneResult, plan: str | None) -> TextReport | None:
    """Write everything and print the tables."""
    figures = {"model": arguments.model, "out": arguments.out, "options": result.plan.options}
    texts = {} if plan is None else {plan: result.plan.to_json()}
    write_result(arguments, result, figures | result.report.to_dict(), texts)
    text = text_report(arguments)
    if text is not None:
        text.pruned(f"{arguments.model} -> {arguments.out}", result.report)
    return text
