"""The passes that are installed: ours, those of other packages, and those of the user's files.

Another package names its passes in an entry point of the group `onnxprune.passes`::

    [project.entry-points."onnxprune.passes"]
    clean-up = "my_package.passes:CleanUp"

A file of the user's needs no more than its name: "my_passes.py:clean_up"; so does whatever can be
imported: "onnx_ir.passes.common:RemoveUnusedNodesPass".

`pipeline_schema` describes files that name them (https://json-schema.org/draft/2020-12); YAML files
name the schema in a comment such as `# yaml-language-server: $schema=pipeline.schema.json`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from onnxprune.calibration.scripts import FUNCTION, load_attribute
from onnxprune.declaration import Option
from onnxprune.errors import InputError, nearest, typed_line
from onnxprune.options import TARGETS, check_targets
from onnxprune.passes.pipeline.adapters import options_of_pass
from onnxprune.passes.pipeline.options import with_of

BUILT_IN = {
    "remove-lossless": "onnxprune.passes.remove_lossless:RemoveLosslessUnits",
    "merge-duplicates": "onnxprune.passes.merge_duplicates:MergeDuplicates",
    "prune": "onnxprune.passes.prune:Prune",
    "keep-classes": "onnxprune.passes.keep_classes:KeepClasses",
    "keep-tokens": "onnxprune.passes.keep_tokens:KeepTokens",
    "remove-blocks": "onnxprune.passes.remove_blocks:RemoveBlocks",
    "sparsify-weights": "onnxprune.passes.sparsify_weights:SparsifyWeights",
    "finetune": "onnxprune.passes.finetune:Finetune",
    "quantize": "onnxprune.passes.quantize:Quantize",
}
_ENTRY_POINTS = "onnxprune.passes"
_ATTRIBUTE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class InstalledPass:
    """A pass that a pipeline can name.

    Attributes:
        name: what a pipeline calls it.
        summary: one line.
        options: what can be set.
        source: the package or file it comes from; empty for an object of Python.
        made_by: a class or function, or something that is a pass already.
    """

    name: str
    summary: str
    options: tuple[Option, ...]
    source: str
    made_by: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            "options": [
                {
                    "name": option.name,
                    "expects": option.expects,
                    "required": option.required,
                    "default": None if option.required else option.default,
                    "help": option.help,
                }
                for option in self.options
            ],
        }

    @property
    def given_as_object(self) -> bool:
        """Whether it is an object of Python, which has no name by which it could be found again."""
        return not self.source

    @property
    def ours(self) -> bool:
        """Whether what goes wrong in it is a bug of onnxprune."""
        return self.source == "onnxprune"


def installed_passes() -> list[InstalledPass]:
    """All passes with a name, ours first.

    A pass of another package that cannot be loaded is listed too, with the reason.
    """
    found = [find_pass(name) for name in BUILT_IN]
    for name in sorted(entry_points(group=_ENTRY_POINTS).names - BUILT_IN.keys()):
        try:
            found.append(find_pass(name))
        except InputError as error:
            found.append(InstalledPass(name, f"broken: {error}", (), "", None))
    return found


def find_pass(name: str) -> InstalledPass:
    """Find a pass.

    Args:
        name: that of an installed pass, "file.py:name" or "package.module:name".

    Raises:
        InputError: when there is none of this name (with the nearest one), or it cannot be loaded.
    """
    if name in BUILT_IN:
        return _described(name, _imported(name, BUILT_IN[name]), "onnxprune")
    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        try:
            made_by = entry.load()
        except Exception as error:  # third-party code
            reason = typed_line(error)
            raise InputError(
                f"pass {name!r} ({entry.value}): cannot be loaded: {reason}"
            ) from error
        return _described(name, made_by, entry.dist.name if entry.dist is not None else entry.value)
    if FUNCTION.fullmatch(name):
        return _described(name, load_attribute(name, "pass"), name.rpartition(":")[0])
    if _ATTRIBUTE.fullmatch(name):
        return _described(name, _imported(name, name), name.partition(".")[0].partition(":")[0])
    known = [*BUILT_IN, *sorted(entry_points(group=_ENTRY_POINTS).names)]
    raise InputError(
        f"unknown pass {name!r}{nearest(name, known)}; a pass of your own is file.py:name"
    )


def _imported(name: str, source: str) -> Any:
    module, _, attribute = source.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise InputError(f"pass {name!r}: cannot be imported: {typed_line(error)}") from error


def _described(name: str, made_by: Any, source: str) -> InstalledPass:
    documented = made_by if inspect.isroutine(made_by) or isinstance(made_by, type) else None
    summary = (inspect.getdoc(documented) or "").strip().partition("\n")[0]
    options = with_of(options_of_pass(made_by, name))
    return InstalledPass(name, summary, options, source, made_by)


_FRACTION = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


def pipeline_schema(passes: Sequence[InstalledPass]) -> dict[str, Any]:
    """Return the schema of files that name these passes, or passes of other files."""
    named = {each.name: _of_pass(each) for each in passes}
    without_options = [
        {"const": each.name, "description": each.summary}
        for each in passes
        if not any(option.required for option in each.options)
    ]
    entry = {
        "type": "object",
        "properties": named,
        "patternProperties": {":": {"type": ["object", "null"]}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    items = {"anyOf": [*without_options, {"type": "string", "pattern": ":"}, entry]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxprune pipeline",
        "type": "object",
        "properties": {"passes": {"type": "array", "items": items, "minItems": 1}},
        "required": ["passes"],
        "additionalProperties": False,
    }


def _of_pass(installed: InstalledPass) -> dict[str, Any]:
    required = [option.name for option in installed.options if option.required]
    return {
        "description": installed.summary,
        "type": "object" if required else ["object", "null"],
        "properties": {option.name: _of_option(option) for option in installed.options},
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _of_option(option: Option) -> dict[str, Any]:
    if option.check is not check_targets:
        return option.schema()
    return {
        "description": option.help,
        "type": ["object", "null"],
        "properties": dict.fromkeys(TARGETS, _FRACTION),
        "additionalProperties": False,
    }
