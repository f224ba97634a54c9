"""Flags that several commands have, and how values are read.

Like all of `onnxprune.cli`, this imports nothing heavy before a command runs, so that --help is
quick.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, get_args

from onnxprune.declaration import Option
from onnxprune.errors import InputError
from onnxprune.options import (
    BEST_EFFORT,
    FINETUNE_OPTIONS,
    LABELS,
    METRIC,
    OPTIONS,
    READERS,
    RUNTIME_OPTIONS,
)

STANDARD_OUTPUT = "-"

EXIT_CODES = (
    "exit codes: 0 done and verified; 1 internal error; 2 bad input or usage; 3 nothing prunable "
    "or target unreachable; 4 verification failed (nothing is written)"
)
_CALIBRATION = (
    "unlabelled samples, a few hundred: .npz or .npy (keys = input names, first axis = samples), a "
    "folder of .npz files or of ONNX test_data_set_*/input_*.pb, or module.py:function yielding "
    "{input: array}; with --images, --tokenizer or --audio a folder of such files, or a text file"
)


class UsageError(Exception):
    """Arguments that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """Reports mistakes in one line, without the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # an abbreviation that works today would be ambiguous with tomorrow's options
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise the message.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}; see {self.prog} --help")


def add_command(
    commands: Any, name: str, summary: str, run: Callable[[Namespace], None]
) -> argparse.ArgumentParser:
    """Add the parser of a command; parsed arguments carry the function to call as `command`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EXIT_CODES
    )
    parser.set_defaults(command=run)
    return parser


def add_calibration(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add --calibration and the options that say how it is read."""
    parser.add_argument("--calibration", metavar="DATA", required=required, help=_CALIBRATION)
    parser.add_argument(
        "--state",
        metavar="OUTPUT=INPUT",
        action=_States,
        help="feed a recurrent model with its own state: this output is that input at the next "
        "step, the samples are sequences without it (a .npz file is one, of arrays over steps; a "
        "folder holds many); zeros at the start; repeatable",
    )
    add_options(parser, READERS)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add --report."""
    parser.add_argument(
        "--report", metavar="FILE.html", help="write a report as one self-contained HTML page"
    )


def add_common(
    parser: argparse.ArgumentParser,
    json: str = "write the figures; - for standard output",
    **more: Any,
) -> None:
    """Add what every command has: providers and threads, --debug, -q, -v, and --json as said."""
    parser.add_argument("--json", metavar="FILE", help=json, **more)
    add_options(parser, RUNTIME_OPTIONS)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and warnings")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="show lists in full")


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """Add the flag of each declared option."""
    for option in options:
        parser.add_argument(_flag(option), default=option.default, **_described(option))


def values(arguments: Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """Values by name, as the functions of the API take them."""
    return {option.name: getattr(arguments, option.name) for option in options}


def changed(arguments: Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """Values of the options that are not at their defaults, by name."""
    return {
        option.name: option.read(getattr(arguments, option.name))
        for option in options
        if getattr(arguments, option.name) != option.default
    }


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


_FLAGS = {
    option.name: _flag(option)
    for option in (*OPTIONS, *FINETUNE_OPTIONS, LABELS, METRIC, BEST_EFFORT)
}


def _described(option: Option) -> dict[str, Any]:
    """How argparse is to read an option."""
    text = re.sub(r"`([\w-]+)`", lambda quoted: _FLAGS.get(quoted[1], quoted[1]), option.help)
    if option.kind is bool or bool in get_args(option.kind):
        action = argparse.BooleanOptionalAction if option.default else "store_true"
        return {"action": action, "help": text}
    described = {"metavar": option.metavar, "help": text}
    if option.metavar == "KIND=FRACTION":
        return {**described, "action": Targets, "help": f"{text}; repeatable"}
    if isinstance(option.default, tuple):
        more = f"; default {','.join(option.default)}" if option.default else ""
        return {**described, "action": Items, "help": f"{text}; repeatable{more}"}
    more = f"; default {option.default}" if option.default is not None else ""
    return {**described, "type": partial(_read, option), "help": text + more}


def _read(option: Option, text: str) -> Any:
    """Read the value of an option: a number where its type allows one."""
    for kind in (str, int, float):
        with contextlib.suppress(ValueError, InputError):
            return option.read(kind(text))
    raise argparse.ArgumentTypeError(f"must be {option.expects}, not {text!r}")


class Items(argparse.Action):
    """Collects values in place of the default; separated by commas where the metavar says so."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one value or several."""
        items = names(values) if "," in str(self.metavar) else [values]
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, items if before is self.default else [*before, *items])


class Targets(argparse.Action):
    """Collects KIND=FRACTION; which kinds and fractions are allowed is checked by the API."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one target."""
        kind, equals, fraction = str(values).partition("=")
        if not (kind and equals and fraction):
            raise argparse.ArgumentError(
                self, f"{values!r} is not of the form KIND=FRACTION, such as macs=0.5"
            )
        targets = getattr(namespace, self.dest) or {}
        if kind in targets:
            raise argparse.ArgumentError(self, f"{kind} is given twice")
        setattr(namespace, self.dest, targets | {kind: fraction})


class _States(argparse.Action):
    """Collects OUTPUT=INPUT."""

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add one state."""
        output, equals, given = str(values).partition("=")
        if not (output and equals and given):
            raise argparse.ArgumentError(
                self, f"{values!r} is not of the form OUTPUT=INPUT, such as hn=h"
            )
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), output: given})


def names(text: str) -> list[str]:
    """Read names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
