"""The arguments of every command. Imports nothing heavy, so that --help answers at once."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NoReturn

from onnxprune.cli.pipelines import add_passes_options, add_pipeline_options
from onnxprune.cli.shared import STANDARD_OUTPUT
from onnxprune.cli.values import Budgets, Names, Targets, fractions, shard, whole, whole_or_auto

_CALIBRATION = (
    "unlabelled samples, a few hundred: .npz or .npy (keys = input names, first axis = samples), a "
    "folder of .npz files or of ONNX test_data_set_*/input_*.pb, or module.py:function yielding "
    "{input: array}"
)
_EXIT_CODES = (
    "exit codes: 0 done and verified; 1 internal error; 2 bad input or usage; 3 nothing prunable "
    "or target unreachable; 4 verification failed (nothing is written)"
)


class UsageError(Exception):
    """Arguments that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes in one line instead of printing the usage as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # an abbreviation that works today would be ambiguous with tomorrow's options
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; parsed arguments carry the function to call as `command`."""
    parser = _Parser(
        prog="onnxprune",
        description="Structured pruning that works on the ONNX file itself.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"onnxprune {version('onnxprune')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_prune(commands)
    _add_verify(commands)
    _add_apply(commands)
    _add_sweep(commands)
    _add_sensitivity(commands)
    _add_passes(commands)
    return parser


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands, "inspect", "what can be pruned, what cannot and why, cost per layer"
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--calibration", metavar="DATA", help=_CALIBRATION)
    parser.add_argument(
        "--svg",
        metavar="FILE",
        help="draw the network: widths, groups by colour; needs pip install 'onnxprune[report]'",
    )
    _add_common(parser)


def _add_prune(commands: Any) -> None:
    parser = _command(commands, "prune", "prune, compensate, verify, save")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT", help="file to write, after everything is verified")
    parser.add_argument("--calibration", metavar="DATA", help=_CALIBRATION)
    parser.add_argument(
        "--target",
        metavar="KIND=FRACTION",
        action=Targets,
        default={},
        help="what is to remain of the original: channels=0.5, params=0.5, macs=0.5, size=0.5, "
        "memory=0.5 or latency=0.5; repeatable, all are met; default channels=0.5",
    )
    parser.add_argument(
        "--max-drop",
        metavar="X",
        type=float,
        help="go no further than the measured quality falls by X: points of accuracy with "
        "--labels, the unit of --metric, else percent of the original's answers; measured on every "
        "fourth sample, which nothing is fitted on; without --target as far as that allows",
    )
    _add_labels(parser, "for measuring, and for --loss")
    parser.add_argument(
        "--metric",
        metavar="FUNCTION",
        help="module.py:function taking {output: array} and the labels, higher is better",
    )
    _add_method(parser)
    add_pipeline_options(parser)
    parser.add_argument(
        "--plan", metavar="FILE", help="write what was done as JSON, for `onnxprune apply`"
    )
    _add_report(parser)
    _add_common(parser)


def _add_method(parser: argparse.ArgumentParser) -> None:
    """How to prune: what all commands have in common that choose what goes."""
    parser.add_argument(
        "--criterion",
        metavar="NAME",
        help="how units are ranked: l1, l2, redundancy, random, or with samples reconstruction, "
        "variance, std, activity, taylor, fisher; default reconstruction with samples, l2 without",
    )
    parser.add_argument(
        "--loss",
        metavar="NAME",
        help="what taylor and fisher differentiate: cross-entropy, mse, or module.py:function "
        "taking {output: array} and the labels and giving the loss of each sample; default "
        "cross-entropy for class scores, mse for other outputs; labels that are not given are "
        "drawn from the model's own outputs",
    )
    _add_compensate(parser, "default least-squares with samples, none without")
    parser.add_argument(
        "--allocation",
        metavar="NAME",
        default="auto",
        help="how the removal is spread over the model: uniform, global (by scores that can be "
        "compared), or auto, which tries several ways and keeps the one whose outputs diverge "
        "least on samples that were not fitted; default auto",
    )
    parser.add_argument(
        "--lossless",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="first take out what changes no output: dead, constant and duplicate units",
    )
    parser.add_argument(
        "--components",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with least-squares, drop the least important components instead of units wherever "
        "only linear maps are done to these, as to the values of an attention head",
    )
    parser.add_argument(
        "--augment",
        metavar="VIEW[,VIEW]",
        action=Names,
        default=[],
        help="views of calibration images to fit layers on as well: flip, shift; for models that "
        "take images flipped and shifted; default none",
    )
    for option, what in (("include", "prune only"), ("exclude", "leave whole")):
        parser.add_argument(
            f"--{option}",
            metavar="PATTERN",
            action="append",
            default=[],
            help=f"{what} what matches this node or tensor name (with * and ?); repeatable",
        )
    parser.add_argument(
        "--round-to",
        metavar="N",
        type=whole_or_auto,
        default="auto",
        help="keep a multiple of N channels on every cut axis; default auto: with a latency target "
        "the steps measured on this machine, else 1",
    )
    parser.add_argument(
        "--normalised-axes",
        action="store_true",
        help="also cut axes that normalisation statistics run over (residual width)",
    )
    parser.add_argument(
        "--steps",
        metavar="N",
        type=whole,
        default=1,
        help="prune in N steps: after each, layers are solved and units ranked anew; default 1",
    )
    parser.add_argument(
        "--blocks",
        action="store_true",
        help="let whole residual branches go too, where outputs then diverge less",
    )
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="default 0")


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "compare two models in onnxruntime")
    parser.add_argument("model", metavar="ORIGINAL")
    parser.add_argument("pruned", metavar="PRUNED")
    parser.add_argument("--calibration", metavar="DATA", required=True, help=_CALIBRATION)
    _add_common(parser)


def _add_apply(commands: Any) -> None:
    parser = _command(commands, "apply", "replay a plan on the same network")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("plan", metavar="PLAN.json")
    parser.add_argument("out", metavar="OUT", help="file to write, after everything is verified")
    parser.add_argument("--calibration", metavar="DATA", help=_CALIBRATION)
    _add_compensate(parser, "default: what the plan says with samples, none without")
    _add_report(parser)
    _add_common(parser)


def _add_sweep(commands: Any) -> None:
    parser = _command(commands, "sweep", "accuracy/cost trade-off curve")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--calibration", metavar="DATA", required=True, help=_CALIBRATION)
    parser.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="folder for sweep.json, sweep.svg and sweep.html, written after every budget; the "
        "same command goes on where an earlier one stopped; made if missing",
    )
    parser.add_argument(
        "--target",
        metavar="KIND=F[,F]",
        action=Budgets,
        default=[],
        help="budgets, one after another: what is to remain of the original, as for prune; "
        "repeatable; default macs=0.9,0.8,0.7,0.6,0.5,0.4,0.3",
    )
    _add_labels(parser, "for measuring every result, and for --loss")
    parser.add_argument(
        "--save",
        action="store_true",
        help="also write the models that no other beats, with their plans: DIR/macs-0.50.onnx",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also cut to the same budgets at random and by weight norms (l1), every group by the "
        "same fraction and nothing made up for, for comparison",
    )
    parser.add_argument(
        "--latency",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="time every result; default: unless the weights exceed 512 MB",
    )
    _add_method(parser)
    _add_common(parser)


def _add_sensitivity(commands: Any) -> None:
    parser = _command(commands, "sensitivity", "how much each group alone can lose")
    parser.add_argument("model", metavar="MODEL", nargs="?", help="not with --merge")
    parser.add_argument("--calibration", metavar="DATA", help=_CALIBRATION)
    parser.add_argument(
        "--keep",
        metavar="F[,F]",
        type=fractions,
        help="fractions of its units that a group is cut to; default 0.75,0.5,0.25",
    )
    _add_labels(parser, "for --loss")
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=shard,
        help="measure every N-th group only, from the I-th on; --merge puts the parts together",
    )
    parser.add_argument(
        "--merge",
        metavar="FILE",
        nargs="+",
        help="measure nothing: put JSON files of the same study together and show them",
    )
    parser.add_argument(
        "--html",
        metavar="FILE.html",
        help="write a heat map of groups and fractions as one HTML page that needs nothing else",
    )
    _add_method(parser)
    _add_common(
        parser,
        json="write the figures, after every group; groups that FILE has already are not measured "
        "again; - for standard output",
    )


def _add_passes(commands: Any) -> None:
    parser = _command(commands, "passes", "the passes that are installed, and their options")
    add_passes_options(parser)
    _add_common(parser, json="print the list as JSON, or write it to FILE", json_alone=True)


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    from onnxprune.cli import commands as single_runs
    from onnxprune.cli import pipelines, studies

    functions = next(one for one in (studies, pipelines, single_runs) if hasattr(one, name))
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EXIT_CODES
    )
    function: Callable[[Namespace], None] = getattr(functions, name)
    parser.set_defaults(command=function)
    return parser


def _add_labels(parser: argparse.ArgumentParser, use: str) -> None:
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help=f"one whole number for each sample, .npy, .npz or text; {use}",
    )


def _add_compensate(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--compensate",
        metavar="NAME",
        help="least-squares solves the layers anew whose input or output is cut, mean folds what "
        f"was removed into the biases of its readers, none does neither; {default}",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        metavar="FILE.html",
        help="write what was done and what it cost as one HTML page that needs nothing else",
    )


def _add_common(
    parser: argparse.ArgumentParser,
    json: str = "write the figures; - for standard output",
    *,
    json_alone: bool = False,
) -> None:
    alone: dict[str, Any] = {"nargs": "?", "const": STANDARD_OUTPUT} if json_alone else {}
    parser.add_argument("--json", metavar="FILE", help=json, **alone)
    parser.add_argument(
        "--providers",
        metavar="NAME[,NAME]",
        action=Names,
        default=[],
        help="onnxruntime execution providers; default CPUExecutionProvider",
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole, default=0, help="default 0: onnxruntime decides"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and warnings")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="show lists in full")
