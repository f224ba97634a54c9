"""`onnxprune sweep`: can be interrupted; the same command continues."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.errors import TargetUnreachable
from onnxprune.options import BATCH, LABELS, METRIC, STUDY_OPTIONS


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    parser = flags.add_command(commands, "sweep", "accuracy/cost trade-off curve", run)
    parser.add_argument("model", metavar="MODEL")
    flags.add_calibration(parser, required=True)
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="folder for sweep.json, sweep.svg and sweep.html, written after every target; the "
        "same command continues an interrupted sweep; made if missing",
    )
    parser.add_argument(
        "--target",
        metavar="KIND=F[,F]",
        action=_Budgets,
        default=[],
        help="targets, one after another: fractions of the original that remain, as for prune; "
        "repeatable; default macs=0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    )
    flags.add_options(parser, [LABELS, METRIC])
    parser.add_argument(
        "--save",
        action="store_true",
        help="also write the Pareto-optimal models, with their plans: DIR/macs-0.50.onnx",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="for comparison, also prune to the same targets at random and by weight norms (l1), "
        "every group by the same fraction, without compensation",
    )
    parser.add_argument(
        "--latency",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="time every result; default: unless the weights exceed 512 MB",
    )
    flags.add_options(parser, [BATCH, *STUDY_OPTIONS])
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Prune to many targets and draw the trade-off curve.

    Raises:
        TargetUnreachable: when no target can be reached.
    """
    from onnxprune.pruning.studies.sweep import BASELINES, TARGETS, sweep

    output.check(arguments)
    try:
        result = sweep(
            arguments.model,
            targets=arguments.target or TARGETS,
            baselines=BASELINES if arguments.baselines else (),
            folder=arguments.out,
            save=arguments.save,
            measure_latency=arguments.latency,
            batch=arguments.batch,
            **output.context(arguments),
            **flags.values(arguments, (LABELS, METRIC, *STUDY_OPTIONS)),
        )
    except KeyboardInterrupt:
        output.stopped(Path(arguments.out) / "sweep.json")
        raise
    output.write_json(arguments, result.to_dict())
    if text := output.printer(arguments):
        text.swept(f"{arguments.model} -> {arguments.out}", result)
    if not any(point.done for point in result.points):
        raise TargetUnreachable(f"no budget can be reached: {result.points[-1].reason}")


class _Budgets(argparse.Action):
    """Collects KIND=F,F,F as one target for each fraction."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one target for each fraction."""
        kind, _, text = str(values).partition("=")
        fractions = text.split(",")
        if not (kind and all(fractions)):
            raise argparse.ArgumentError(
                self, f"{values!r} is not of the form KIND=F,F, such as macs=0.7,0.5"
            )
        targets = [{kind: fraction} for fraction in fractions]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *targets])
