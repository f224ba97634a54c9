"""Pipelines on the command line: `prune --passes a,b` and `--config FILE`, and `passes`."""

from __future__ import annotations

import argparse
import sys
import textwrap
from argparse import Namespace
from collections.abc import Mapping
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from onnxprune.cli.shared import (
    STANDARD_OUTPUT,
    check_outputs,
    method,
    progress,
    runtime,
    write_json,
    write_result,
)
from onnxprune.errors import InputError, nearest

if TYPE_CHECKING:
    from onnxprune.declaration import Option
    from onnxprune.passes.pipeline.registry import InstalledPass
    from onnxprune.passes.pipeline.results import PipelineResult
    from onnxprune.pruning.plan import Plan
    from onnxprune.report.pipeline_text import PipelineText

_OF_PRUNE = ("target", "max_drop", "labels", "metric")
_OF_THE_RUN = ("seed", "providers", "threads")
_NAME = 30
_WIDTH = 98
_INDENTED: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "        "}


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """What `prune` takes to run passes one after another."""
    passes = parser.add_mutually_exclusive_group()
    passes.add_argument(
        "--passes",
        metavar="NAME[,NAME]",
        type=_names,
        help="run these passes one after another, each checked before the next: see `onnxprune "
        "passes`; one of your own is file.py:name. Options as for prune go to the pass prune",
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


def add_passes_options(parser: argparse.ArgumentParser) -> None:
    """What `passes` takes."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this one, in full")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print a JSON schema of the file for --config, for editors, and nothing else",
    )


def is_pipeline(arguments: Namespace) -> bool:
    """Whether passes are to be run."""
    return bool(arguments.passes or arguments.config or arguments.set)


def run(arguments: Namespace) -> None:
    """Run passes and write the model."""
    from onnxprune.passes.pipeline.run import run_pipeline

    inputs = [arguments.config] if arguments.config else []
    check_outputs(arguments, arguments.out, arguments.plan, arguments.report, inputs=inputs)
    result = run_pipeline(
        arguments.model,
        _described(arguments),
        calibration=arguments.calibration,
        seed=arguments.seed,
        progress=progress(arguments),
        **runtime(arguments),
    )
    texts = {} if arguments.plan is None else {arguments.plan: result.plan.to_json()}
    _finish(arguments, result, texts)


def repeat(arguments: Namespace, plan: Plan) -> None:
    """Run a planned pipeline again and write the model.

    Raises:
        InputError: when --compensate is given, which is for the plan of one pruning.
    """
    from onnxprune.passes.pipeline.run import apply_pipeline

    if arguments.compensate is not None:
        raise InputError(
            f"{arguments.plan} is the plan of a pipeline, whose passes say how they compensate; "
            "leave out --compensate"
        )
    result = apply_pipeline(
        arguments.model,
        plan,
        calibration=arguments.calibration,
        progress=progress(arguments),
        **runtime(arguments),
    )
    _finish(arguments, result, {})


def passes(arguments: Namespace) -> None:
    """List the passes that are installed."""
    from onnxprune.passes.pipeline.registry import find_pass, installed_passes
    from onnxprune.passes.pipeline.schema import pipeline_schema
    from onnxprune.report.figures import json_text

    found = [find_pass(arguments.name)] if arguments.name else installed_passes()
    if arguments.schema:
        sys.stdout.write(json_text(pipeline_schema(found)))
        return
    write_json(arguments, {"passes": [one.to_dict() for one in found]})
    if text := _text(arguments):
        for one in found:
            text.note(_pass_text(one, in_full=bool(arguments.name or arguments.verbose)))


def _pass_text(one: InstalledPass, *, in_full: bool) -> str:
    """A pass and its options, at most 98 columns wide."""
    from onnxprune.report.figures import printable

    lines = [f"{printable(one.name, _NAME)}: {printable(one.summary)}"]
    if in_full:
        lines += [line for option in one.options for line in _option(option)]
    else:
        names = ", ".join(option.name for option in one.options) or "none"
        lines += textwrap.wrap(f"options: {names}", _WIDTH, **_INDENTED)
    return "\n".join(lines)


def _option(option: Option) -> list[str]:
    default = "required" if option.required else f"default {_value(option.default)}"
    from onnxprune.report.figures import printable

    text = f"{option.name} ({option.expects}; {default}): {printable(option.help)}"
    return textwrap.wrap(text, _WIDTH, **_INDENTED)


def _value(default: Any) -> str:
    if default is Parameter.empty or default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if default != () else "none"


def _finish(arguments: Namespace, result: PipelineResult, texts: Mapping[str, str]) -> None:
    """Write everything and print the tables."""
    figures = {"model": arguments.model, "out": arguments.out} | result.to_dict()
    write_result(arguments, result, figures, texts)
    if text := _text(arguments):
        text.ran(f"{arguments.model} -> {arguments.out}", result)
        text.wrote(result.files_beside(arguments.out))


def _described(arguments: Namespace) -> Any:
    """The pipeline as `run_pipeline` takes it."""
    from onnxprune.passes.pipeline.steps import read_description

    given = _given(arguments)
    if arguments.config:
        described = read_description(arguments.config)
    elif arguments.passes:
        described = [(name, given if name == "prune" else {}) for name in arguments.passes]
    else:
        raise InputError("--set needs --passes or --config")
    if given and (arguments.config or "prune" not in arguments.passes):
        option = next(iter(given)).replace("_", "-")
        remedy = f"set it in {arguments.config}" if arguments.config else "name it in --passes"
        raise InputError(f"--{option} is for the pass prune: {remedy}")
    for setting in arguments.set:
        described = _with_setting(described, setting)
    return [{name: options} for name, options in described]


def _with_setting(
    described: list[tuple[str, Mapping[str, Any]]], setting: str
) -> list[tuple[str, Mapping[str, Any]]]:
    from onnxprune.passes.pipeline.steps import parse_value

    left, equals, value = setting.partition("=")
    addresses = _addresses([name for name, _ in described])
    # names of files have dots too, so the longest that fits is meant
    address = max((one for one in addresses if left.startswith(f"{one}.")), key=len, default="")
    if not (equals and "." in left) or left.endswith("."):
        raise InputError(f"--set {setting!r} is not of the form PASS.OPTION=VALUE")
    if not address:
        name = left.rpartition(".")[0]
        raise InputError(f"--set {setting!r}: no pass {name!r} is run{nearest(name, addresses)}")
    keys = left[len(address) + 1 :].split(".")
    return [
        (name, _updated(options, keys, parse_value(value)) if n in addresses[address] else options)
        for n, (name, options) in enumerate(described)
    ]


def _addresses(names: list[str]) -> dict[str, list[int]]:
    """What passes can be called: all of a name, or as NAME#N the N-th of them."""
    found: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        found.setdefault(name, []).append(n)
    for name, places in list(found.items()):
        for count, n in enumerate(places if len(places) > 1 else [], 1):
            found[f"{name}#{count}"] = [n]
    return found


def _updated(options: Any, keys: list[str], value: Any) -> dict[str, Any]:
    """Options with the value at a place, which may lie in a mapping of a mapping."""
    known = dict(options) if isinstance(options, Mapping) else {}
    first, *inner = keys
    return known | {first: _updated(known.get(first), inner, value) if inner else value}


def _given(arguments: Namespace) -> dict[str, Any]:
    """Options of pruning that are not at their defaults."""
    from onnxprune.cli.arguments import build_parser
    from onnxprune.options import check_targets

    names = [name for name in (*_OF_PRUNE, *method(arguments)) if name not in _OF_THE_RUN]
    defaults = build_parser().parse_args(["prune", "MODEL", "OUT"])
    given = {
        name: getattr(arguments, name)
        for name in names
        if getattr(arguments, name) != getattr(defaults, name)
    }
    return given | ({"target": check_targets(given["target"])} if "target" in given else {})


def _text(arguments: Namespace) -> PipelineText | None:
    """Where tables go; None when standard output is to stay empty or holds the figures."""
    if arguments.quiet or arguments.json == STANDARD_OUTPUT:
        return None
    from onnxprune.report.pipeline_text import PipelineText
    from onnxprune.report.text import make_console

    return PipelineText(make_console(sys.stdout), arguments.verbose)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
