"""The command line: parse, call the API, print."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from onnxprune.cli.arguments import UsageError, build_parser
from onnxprune.errors import OnnxPruneError

_INTERNAL_ERROR = 1
_BAD_USAGE = 2
_INTERRUPTED = 130
_LONGEST = 1000


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
        arguments = build_parser().parse_args(argv)
        arguments.words = ["onnxprune", *(sys.argv[1:] if argv is None else argv)]
    except UsageError as error:
        return _complain(f"error: {error}", _BAD_USAGE)
    try:
        with warnings.catch_warnings():
            if not arguments.debug:
                # what the libraries beneath have to say is for developers
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
        # the reader has seen enough; the flush at exit would complain once more
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if arguments.debug:
            raise
        kind = type(error).__name__
        message = f"internal error: {kind}: {str(error)[:300]}; run again with --debug"
        return _complain(message, _INTERNAL_ERROR)
    return 0


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())[:_LONGEST]
    shown = "".join(letter if letter.isprintable() else "?" for letter in line)
    print(f"onnxprune: {shown}", file=sys.stderr)
    return code
