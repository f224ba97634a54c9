"""The options of a pass: the keyword parameters of its constructor, and nothing else.

Their types are the annotations, their meaning is what the docstring says under `Args:`. So any pass
can be configured, listed and checked without further declarations.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxprune.declaration import Option

SUPPLIED = frozenset({"samples", "runtime", "seed", "progress", "plan"})
"""Parameters that the pipeline fills in: they are no options."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ENTRY = re.compile(r"(\w+)(?: \([^)]*\))?: (.*)")
_WELL_KNOWN = {
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
    **{name: getattr(collections.abc, name) for name in ("Callable", "Mapping", "Sequence")},
    "Path": Path,
}
"""What annotations commonly name and modules import for type checkers only."""


def options_of(factory: Callable[..., Any], skip: int = 0) -> tuple[Option, ...]:
    """Read the options of a pass.

    Args:
        factory: its class, or a function. A class whose constructor takes `**options` may list
            them as `declared`.
        skip: how many positional parameters come first that are no options.
    """
    if declared := getattr(factory, "declared", ()):
        return tuple(option for option in declared if option.name not in SUPPLIED)
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:  # written in C
        return ()
    first = [each for each in parameters if each.kind in _POSITIONAL][:skip]
    helps = documented(factory)
    return tuple(
        Option(each.name, _kind(each, factory), each.default, helps.get(each.name, ""))
        for each in parameters
        if each.kind in _NAMED and each not in first and each.name not in SUPPLIED
    )


def _kind(parameter: inspect.Parameter, factory: Callable[..., Any]) -> Any:
    """The type of a parameter, Any for none and for one whose names cannot be found."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    known = _WELL_KNOWN | vars(sys.modules.get(factory.__module__, typing))
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(holder, known)["it"]
    except Exception:  # names that are imported for type checkers only
        return Any


def documented(factory: Callable[..., Any]) -> dict[str, str]:
    """What a Google-style docstring says of each parameter under `Args:`."""
    lines = (inspect.getdoc(factory) or "").splitlines()
    if "Args:" not in lines:
        return {}
    helps: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and len(line) - len(line.lstrip()) == 4:
            name, helps[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            helps[name] += f" {line.strip()}"
    return helps
