"""A JSON schema of the pipeline file, for editors that complete and check as one types.

https://json-schema.org/draft/2020-12; YAML files name it in a comment such as
`# yaml-language-server: $schema=pipeline.schema.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.declaration import Option
from onnxprune.options import TARGETS, check_targets
from onnxprune.passes.pipeline.registry import InstalledPass

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
