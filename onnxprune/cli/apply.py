"""`onnxprune apply`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.options import BATCH


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    parser = flags.add_command(commands, "apply", "replay a plan on the same network", run)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("out", metavar="OUT", help="file to write, after everything is verified")
    flags.add_calibration(parser)
    parser.add_argument(
        "--compensate",
        metavar="NAME",
        help="least-squares, mean or none, as for prune; default: as the plan says with samples, "
        "else none",
    )
    flags.add_options(parser, [BATCH])
    flags.add_report(parser)
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Replay a plan and write the model."""
    from onnxprune import api
    from onnxprune.pruning.plan import Plan

    output.check(arguments, arguments.out, arguments.report, inputs=[arguments.plan])
    plan = Plan.load(arguments.plan)
    context = output.context(arguments) | {"batch": arguments.batch}
    result = api.apply(arguments.model, plan, compensate=arguments.compensate, **context)
    if plan.steps:
        output.finish_passes(arguments, result)
        return
    text = output.finish_prune(arguments, result)
    planned = plan.options.get("compensate", "none")
    uncompensated = arguments.compensate is None and arguments.calibration is None
    if text is not None and uncompensated and planned != "none":
        text.note(
            f"The plan was made with --compensate {planned}; without --calibration nothing was "
            "compensated."
        )
