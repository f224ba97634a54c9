"""`onnxprune verify`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.options import LABELS, METRIC

_OPTIONS = (LABELS, METRIC)


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    parser = flags.add_command(commands, "verify", "compare two models in onnxruntime", run)
    parser.add_argument("model", metavar="ORIGINAL")
    parser.add_argument("pruned", metavar="PRUNED")
    flags.add_calibration(parser, required=True)
    flags.add_options(parser, _OPTIONS)
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Compare two models."""
    from onnxprune import api

    output.check(arguments)
    options = flags.values(arguments, _OPTIONS)
    comparison = api.verify(
        arguments.model, arguments.pruned, **output.context(arguments), **options
    )
    output.write_json(arguments, comparison.to_dict())
    if text := output.printer(arguments):
        text.compared(f"{arguments.model} and {arguments.pruned}", comparison)
