"""`onnxprune inspect`."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.options import RUNTIME_OPTIONS


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    summary = "what can be pruned, what cannot and why, cost per layer"
    parser = flags.add_command(commands, "inspect", summary, run)
    parser.add_argument("model", metavar="MODEL")
    flags.add_calibration(parser)
    parser.add_argument(
        "--svg",
        metavar="FILE",
        help="draw the network: widths, groups by colour; needs pip install 'onnxprune[report]'",
    )
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Say what can be pruned and what every layer costs."""
    from onnxprune import api

    output.check(arguments, arguments.svg)
    inspection = api.inspect(
        arguments.model,
        calibration=output.samples(arguments),
        **flags.values(arguments, RUNTIME_OPTIONS),
    )
    if arguments.svg is not None:
        inspection.save_svg(arguments.svg, os.path.basename(arguments.model))
    output.write_json(arguments, inspection.to_dict())
    if text := output.printer(arguments):
        text.inspected(arguments.model, inspection)
