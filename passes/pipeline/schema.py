"""A JSON schema of the pipeline file, for editors that complete and check as one types.

https://json-schema.org/draft/2020-12; YAML files name it in a comment such as
`# yaml-language-server: $schema=pipeline.schema.json`.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxprune.passes.pipeline.options import PassOption
from onnxprune.passes.pipeline.registry import InstalledPass
from onnxprune.passes.pipeline.targets import OF, TARGET

from onnxprune.options import TARGETS

_SINGLE = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_FRACTION = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


def pipeline_schema(passes: Sequence[InstalledPass]) -> dict[str, Any]:
    """Return the schema of files that name these passes, or passes of other files."""
    named = {one.name: _of_pass(one) for one in passes}
    without_options = [
        {"const": one.name, "description": one.summary}
        for one in passes
        if not any(option.required for option in one.options)
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


def _of_pass(one: InstalledPass) -> dict[str, Any]:
    has_targets = OF in one.options
    required = [option.name for option in one.options if option.required]
    return {
        "description": one.summary,
        "type": "object" if required else ["object", "null"],
        "properties": {
            option.name: _of_target(option)
            if has_targets and option.name == TARGET
            else _of_option(option)
            for option in one.options
        },
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _of_target(option: PassOption) -> dict[str, Any]:
    return {
        "description": option.help,
        "type": ["object", "null"],
        "properties": dict.fromkeys(TARGETS, _FRACTION),
        "additionalProperties": False,
    }


def _of_option(option: PassOption) -> dict[str, Any]:
    default = option.default
    plain = isinstance(default, (str, bool, int, float))
    return {
        "description": option.help,
        **_of_kind(option.kind),
        **({"default": default} if plain else {}),
    }


def _of_kind(kind: Any) -> dict[str, Any]:
    """The schema of a type; one that takes anything where JSON has no such type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    container = origin or kind
    if kind is type(None):
        return {"type": "null"}
    if kind in _SINGLE:
        return {"type": _SINGLE[kind]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of_kind(one) for one in arguments if not _is_function(one)]}
    if container in _SEQUENCES:
        items = {"items": _of_kind(arguments[0])} if arguments else {}
        return {"type": "array", **items}
    if container in _MAPPINGS:
        values = {"additionalProperties": _of_kind(arguments[1])} if arguments else {}
        return {"type": "object", **values}
    return {}


def _is_function(kind: Any) -> bool:
    return (typing.get_origin(kind) or kind) is collections.abc.Callable
