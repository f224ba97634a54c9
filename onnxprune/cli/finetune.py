"""`onnxprune finetune`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.options import BATCH, FINETUNE_OPTIONS, FORCE, OPTIONS

_SEED = tuple(option for option in OPTIONS if option.name == "seed")
_OPTIONS = (*FINETUNE_OPTIONS, *_SEED, BATCH, FORCE)


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    summary = "train the weights of a model to answer as another does"
    parser = flags.add_command(commands, "finetune", summary, run)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT", help="file to write, after everything is verified")
    flags.add_calibration(parser, required=True)
    flags.add_options(parser, _OPTIONS)
    parser.add_argument(
        "--plan", metavar="FILE", help="write what was done as JSON, for `onnxprune apply`"
    )
    flags.add_report(parser)
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Fine-tune a model and write the result."""
    from onnxprune import api

    read = [path for path in (arguments.teacher, arguments.pruning) if path is not None]
    outputs = (arguments.out, arguments.plan, arguments.report)
    output.check(arguments, *outputs, inputs=read)
    options = flags.values(arguments, _OPTIONS)
    result = api.finetune(arguments.model, **options, **output.context(arguments))
    output.finish_passes(arguments, result, arguments.plan)
