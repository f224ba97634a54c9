"""`onnxprune sensitivity`: can be interrupted; the same command continues."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.cli import flags, output
from onnxprune.errors import InputError
from onnxprune.options import LABELS, METRIC, STUDY_OPTIONS

if TYPE_CHECKING:
    from onnxprune.pruning.studies.sensitivity import Sensitivity


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    parser = flags.add_command(commands, "sensitivity", "how much each group alone can lose", run)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="not with --merge")
    flags.add_calibration(parser)
    parser.add_argument(
        "--keep",
        metavar="F[,F]",
        type=_fractions,
        help="fractions of its units that a group is cut to; default 0.75,0.5,0.25",
    )
    flags.add_options(parser, [LABELS, METRIC])
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="measure every N-th group only, from the I-th on; --merge combines the parts",
    )
    parser.add_argument(
        "--merge",
        metavar="FILE",
        nargs="+",
        help="measure nothing: combine JSON files of the same study and show them",
    )
    parser.add_argument(
        "--html",
        metavar="FILE.html",
        help="write a heat map of groups and fractions as one self-contained HTML page",
    )
    flags.add_options(parser, STUDY_OPTIONS)
    flags.add_common(
        parser,
        json="write the figures, after every group; groups that FILE already has are not measured "
        "again; - for standard output",
    )


def run(arguments: Namespace) -> None:
    """Cut each group alone, or combine what was measured in parts."""
    from onnxprune.model.save import write_text_atomic

    result = _merged(arguments) if arguments.merge else _measured(arguments)
    name = arguments.model or ", ".join(arguments.merge)
    if arguments.html is not None:
        write_text_atomic(arguments.html, result.to_html(Path(name).name))
    if arguments.merge or arguments.json == flags.STANDARD_OUTPUT:
        output.write_json(arguments, result.to_dict())
    if text := output.printer(arguments):
        text.sensed(name, result)


def _measured(arguments: Namespace) -> Sensitivity:
    from onnxprune.pruning.studies.sensitivity import KEEP, sensitivity

    if arguments.model is None or arguments.calibration is None:
        raise InputError("give MODEL and --calibration, or --merge with files to combine")
    output.check(arguments, arguments.html)
    file = arguments.json if arguments.json != flags.STANDARD_OUTPUT else None
    try:
        return sensitivity(
            arguments.model,
            keep=arguments.keep or KEEP,
            shard=arguments.shard,
            file=file,
            **output.context(arguments),
            **flags.values(arguments, (LABELS, METRIC, *STUDY_OPTIONS)),
        )
    except KeyboardInterrupt:
        if file is not None:
            output.stopped(Path(file))
        raise


def _merged(arguments: Namespace) -> Sensitivity:
    from onnxprune.model.save import check_writable
    from onnxprune.pruning.studies.sensitivity import Sensitivity

    unused = ("model", "calibration", "labels", "metric", "keep", "shard")
    if any(getattr(arguments, name) is not None for name in unused):
        raise InputError(
            "--merge measures nothing: leave out MODEL, --calibration, --labels, --metric, --keep, "
            "--shard"
        )
    output.check(arguments, arguments.html)
    for part in arguments.merge if arguments.html is not None else ():
        check_writable(arguments.html, Path(part))
    first, *others = map(Sensitivity.load, arguments.merge)
    return first.merge(*others)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(fraction) for fraction in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of fractions such as 0.75,0.5"
        ) from None


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, such as 2/4")
    return int(number), int(count)
