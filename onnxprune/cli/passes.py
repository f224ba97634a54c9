"""`onnxprune passes`."""

from __future__ import annotations

import sys
import textwrap
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from onnxprune.cli import flags, output

if TYPE_CHECKING:
    from onnxprune.declaration import Option
    from onnxprune.passes.pipeline.registry import InstalledPass

_NAME_CHARACTERS = 30
_WIDTH = 98
_INDENTED: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "        "}


def add_parser(commands: Any) -> None:
    """Add the command and its flags."""
    summary = "the passes that are installed, and their options"
    parser = flags.add_command(commands, "passes", summary, run)
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this one, in full")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print a JSON schema of the file for --config, for editors, and nothing else",
    )
    json = "print the list as JSON, or write it to FILE"
    flags.add_common(parser, json, nargs="?", const=flags.STANDARD_OUTPUT)


def run(arguments: Namespace) -> None:
    """List the passes that are installed."""
    from onnxprune.passes.pipeline.registry import find_pass, installed_passes, pipeline_schema
    from onnxprune.report.figures import json_text

    passes = [find_pass(arguments.name)] if arguments.name else installed_passes()
    if arguments.schema:
        sys.stdout.write(json_text(pipeline_schema(passes)))
        return
    output.write_json(arguments, {"passes": [installed.to_dict() for installed in passes]})
    if text := output.printer(arguments):
        for installed in passes:
            text.note(_pass_text(installed, in_full=bool(arguments.name or arguments.verbose)))


def _pass_text(installed: InstalledPass, *, in_full: bool) -> str:
    """A pass and its options, at most 98 columns wide."""
    from onnxprune.report.figures import printable

    if in_full:
        paragraphs = [printable(_option_text(option)) for option in installed.options]
    else:
        names = ", ".join(option.name for option in installed.options) or "none"
        paragraphs = [f"options: {names}"]
    heading = f"{printable(installed.name, _NAME_CHARACTERS)}: {printable(installed.summary)}"
    wrapped = [line for text in paragraphs for line in textwrap.wrap(text, _WIDTH, **_INDENTED)]
    return "\n".join([heading, *wrapped])


def _option_text(option: Option) -> str:
    default = "optional" if option.default in (None, ()) else f"default {option.default}"
    if isinstance(option.default, bool):
        default = default.lower()
    if option.required:
        default = "required"
    return f"{option.name} ({option.expects}; {default}): {option.help}"
