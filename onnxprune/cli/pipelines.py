"""Pipelines on the command line: `prune --passes a,b` and `--config FILE`, and `passes`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from onnxprune.cli.shared import (
    STANDARD_OUTPUT,
    check_outputs,
    method,
    progress,
    runtime,
    write_json,
)
from onnxprune.errors import InputError

if TYPE_CHECKING:
    import argparse
    from argparse import Namespace
    from collections.abc import Mapping

    from onnxprune.report.pipeline_text import PipelineText

__all__ = ["add_pipeline_options", "is_pipeline", "passes", "run"]

_OF_PRUNE = ("target", "max_drop", "labels", "metric")
_OF_THE_RUN = ("seed", "providers", "threads")
_NOT_WRITTEN = ("plan", "report")


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
        help="an option of a pass, such as sparsify-weights.pattern=2:4; repeatable",
    )


def is_pipeline(arguments: Namespace) -> bool:
    """Whether passes are to be run."""
    return bool(arguments.passes or arguments.config or arguments.set)


def run(arguments: Namespace) -> None:
    """Run passes and write the model."""
    from onnxprune.pipelines.run import run_pipeline

    for name in _NOT_WRITTEN:
        if getattr(arguments, name, None) is not None:
            raise InputError(f"--{name} is written by a run without --passes and --config only")
    inputs = [arguments.config] if arguments.config else []
    check_outputs(arguments, arguments.out, inputs=inputs)
    result = run_pipeline(
        arguments.model,
        _described(arguments),
        calibration=arguments.calibration,
        seed=arguments.seed,
        progress=progress(arguments),
        **runtime(arguments),
    )
    result.save(arguments.out)
    write_json(arguments, {"model": arguments.model, "out": arguments.out} | result.to_dict())
    if text := _text(arguments):
        text.ran(f"{arguments.model} -> {arguments.out}", result)


def passes(arguments: Namespace) -> None:
    """List the passes that are installed."""
    from onnxprune.pipelines.registry import find_pass, installed_passes

    found = [find_pass(arguments.name)] if arguments.name else installed_passes()
    write_json(arguments, {"passes": [one.to_dict() for one in found]})
    if text := _text(arguments):
        text.listed(found, in_full=bool(arguments.name or arguments.verbose))


def _described(arguments: Namespace) -> Any:
    """The pipeline as `run_pipeline` takes it."""
    from onnxprune.pipelines.steps import read_description

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
    from onnxprune.pipelines.options import nearest
    from onnxprune.pipelines.steps import parse_value

    left, equals, value = setting.partition("=")
    name, _, option = left.rpartition(".")
    if not (name and option and equals):
        raise InputError(f"--set {setting!r} is not of the form PASS.OPTION=VALUE")
    known = [one for one, _ in described]
    if name not in known:
        raise InputError(f"--set {setting!r}: no pass {name!r} is run{nearest(name, known)}")
    return [
        (one, {**options, option: parse_value(value)} if one == name else options)
        for one, options in described
    ]


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
