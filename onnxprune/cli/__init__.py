"""The command line: one file for each command, with its flags, its call and its output."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import onnxprune
from onnxprune.cli import apply, finetune, inspect, passes, prune, sensitivity, sweep, verify
from onnxprune.cli.flags import EXIT_CODES, Parser, UsageError
from onnxprune.errors import OnnxPruneError

_COMMANDS = (inspect, prune, finetune, verify, apply, sweep, sensitivity, passes)
_INTERNAL_ERROR = 1
_BAD_USAGE = 2
_INTERRUPTED = 130
_MESSAGE_CHARACTERS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 done and verified, 1 internal error, 2 bad input or usage, 3 nothing
        prunable or target unreachable, 4 verification failed, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # a name that the terminal's encoding lacks is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _build_parser().parse_args(argv)
        arguments.words = ["onnxprune", *(sys.argv[1:] if argv is None else argv)]
    except UsageError as error:
        return _complain(f"error: {error}", _BAD_USAGE)
    try:
        with warnings.catch_warnings():
            if not arguments.debug:
                # warnings of the libraries are for developers
                warnings.simplefilter("ignore")
                logging.basicConfig(handlers=[logging.NullHandler()])
            arguments.command(arguments)
            sys.stdout.flush()
    except OnnxPruneError as error:
        if arguments.debug:
            raise
        return _complain(f"error: {error}", error.exit_code)
    except KeyboardInterrupt as interrupt:
        return _complain(f"interrupted; {str(interrupt) or 'nothing was written'}", _INTERRUPTED)
    except BrokenPipeError:
        # nobody reads on; the flush at exit would fail once more
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if arguments.debug:
            raise
        kind = type(error).__name__
        message = f"internal error: {kind}: {str(error)[:300]}; run again with --debug"
        return _complain(message, _INTERNAL_ERROR)
    return 0


def _build_parser() -> Parser:
    parser = Parser(
        prog="onnxprune",
        description="Structured pruning that works on the ONNX file itself.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"onnxprune {onnxprune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())[:_MESSAGE_CHARACTERS]
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    print(f"onnxprune: {shown}", file=sys.stderr)
    return code
