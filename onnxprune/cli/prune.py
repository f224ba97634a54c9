"""`onnxprune prune`, also with several passes: --passes a,b or --config FILE."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from onnxprune.cli import flags, output
from onnxprune.errors import InputError, TargetUnreachable, nearest
from onnxprune.options import BATCH, BEST_EFFORT, FORCE, LABELS, METRIC, OPTIONS

_QUALITY = (LABELS, METRIC, BEST_EFFORT)
_OPTIONS = (*OPTIONS, *_QUALITY)
_OF_ALL = ("seed", "max_drop", *(option.name for option in _QUALITY))
"""Names of options that a pipeline has as a whole."""


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    parser = flags.add_command(commands, "prune", "prune, compensate, verify, save", run)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT", help="file to write, after everything is verified")
    flags.add_calibration(parser)
    flags.add_options(parser, _OPTIONS)
    passes = parser.add_mutually_exclusive_group()
    passes.add_argument(
        "--passes",
        metavar="NAME[,NAME]",
        type=flags.names,
        help="run these passes one after another, each checked before the next: see `onnxprune "
        "passes`; one of your own is file.py:name. Options of prune go to the pass prune; "
        "--labels, --metric, --max-drop and --best-effort are about the model after every pass",
    )
    passes.add_argument(
        "--config", metavar="FILE", help="the same from a YAML or JSON file: passes with options"
    )
    parser.add_argument(
        "--set",
        metavar="PASS.OPTION=VALUE",
        action="append",
        default=[],
        help="an option of a pass, such as sparsify-weights.pattern=2:4 or prune.target.macs=0.5; "
        "prune#2.steps=3 is that of the second prune alone; repeatable",
    )
    parser.add_argument(
        "--plan", metavar="FILE", help="write what was done as JSON, for `onnxprune apply`"
    )
    flags.add_options(parser, [BATCH, FORCE])
    flags.add_report(parser)
    flags.add_common(parser)


def run(arguments: Namespace) -> None:
    """Prune a model, or run passes, and write the result.

    Raises:
        TargetUnreachable: when the best was written that does not meet a limit.
    """
    from onnxprune import api

    several = bool(arguments.passes or arguments.config or arguments.set)
    outputs = (arguments.out, arguments.plan, arguments.report)
    output.check(arguments, *outputs, inputs=[arguments.config] if arguments.config else [])
    context = output.context(arguments) | {"batch": arguments.batch, "force": arguments.force}
    if several:
        steps = _steps(arguments)
        whole = {name: getattr(arguments, name) for name in _OF_ALL}
        result = api.run_pipeline(arguments.model, steps, **whole, **context)
        output.finish_passes(arguments, result, arguments.plan)
    else:
        result = api.prune(arguments.model, **context, **flags.values(arguments, _OPTIONS))
        output.finish_prune(arguments, result, arguments.plan)
    if result.missed:
        raise TargetUnreachable(f"{result.missed}; the best was written to {arguments.out}")


def _steps(arguments: Namespace) -> list[Mapping[str, Any]]:
    """The passes as `run_pipeline` takes them.

    Raises:
        InputError: for options of prune without the pass prune, or a --set that fits no pass.
    """
    from onnxprune.passes.pipeline.steps import read_description

    changed = flags.changed(arguments, [each for each in _OPTIONS if each.name not in _OF_ALL])
    if arguments.config:
        steps = read_description(arguments.config)
    elif arguments.passes:
        steps = [(name, changed if name == "prune" else {}) for name in arguments.passes]
    else:
        raise InputError("--set needs --passes or --config")
    if changed and (arguments.config or "prune" not in arguments.passes):
        flag = next(iter(changed)).replace("_", "-")
        remedy = f"set it in {arguments.config}" if arguments.config else "name it in --passes"
        raise InputError(f"--{flag} is for the pass prune: {remedy}")
    for setting in arguments.set:
        steps = _with_setting(steps, setting)
    return [{name: options} for name, options in steps]


def _with_setting(
    steps: Sequence[tuple[str, Mapping[str, Any]]], setting: str
) -> list[tuple[str, Mapping[str, Any]]]:
    """The steps with one option set, as --set says."""
    from onnxprune.passes.pipeline.steps import parse_value

    left, equals, value = setting.partition("=")
    addresses = _addresses([name for name, _ in steps])
    # names of files have dots too, so the longest that fits is meant
    address = max((each for each in addresses if left.startswith(f"{each}.")), key=len, default="")
    if not (equals and "." in left) or left.endswith("."):
        raise InputError(f"--set {setting!r} is not of the form PASS.OPTION=VALUE")
    if not address:
        name = left.rpartition(".")[0]
        raise InputError(f"--set {setting!r}: no pass {name!r} is run{nearest(name, addresses)}")
    keys = left[len(address) + 1 :].split(".")
    return [
        (name, _updated(options, keys, parse_value(value)) if n in addresses[address] else options)
        for n, (name, options) in enumerate(steps)
    ]


def _addresses(passes: list[str]) -> dict[str, list[int]]:
    """What passes can be called: all of a name, or as NAME#N the N-th of them."""
    places: dict[str, list[int]] = {}
    for n, name in enumerate(passes):
        places.setdefault(name, []).append(n)
    numbered = {
        f"{name}#{count}": [n]
        for name, several in places.items()
        if len(several) > 1
        for count, n in enumerate(several, 1)
    }
    return places | numbered


def _updated(options: Any, keys: list[str], value: Any) -> dict[str, Any]:
    """Options with the value at a place, which may lie in a mapping of a mapping."""
    known = dict(options) if isinstance(options, Mapping) else {}
    first, *inner = keys
    return known | {first: _updated(known.get(first), inner, value) if inner else value}
