"""The options of a pass: the keyword parameters of its constructor, and nothing else.

Their types are the annotations, their meaning is what the docstring says under `Args:`. So any pass
can be configured, listed and checked without further declarations.

A target is a fraction of the model that the pipeline was given, so that the figures of all passes
mean the same and are those of the summary. For a target f, and a fraction r of the original that is
left before the pass, a pass with an option `target` (a mapping) gets the target::

    f / r  of the model it is given        (nothing, where f >= r)

With `of: current` it gets f. `channels` is always f: every group meets it by itself, and groups of
the original may no longer exist.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from onnxprune.cost.kinds import FIGURES
from onnxprune.declaration import Option
from onnxprune.options import TARGETS, check_targets, share_text, target_text
from onnxprune.report.records import Sizes

SUPPLIED = frozenset(
    {"samples", "runtime", "seed", "progress", "plan", "quality", "reference", "force"}
)
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


TARGET = "target"
"""The option of a pass that says which fraction remains."""

OF = Option(
    "of",
    Literal["original", "current"],
    "original",
    "what the fractions of target refer to: original, the model that the pipeline was given, or "
    "current, the model that this pass is given",
)

_PER_GROUP = "channels"


def with_of(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The options of a pass; for one that takes targets, with `of`, and its targets checked."""
    for place, option in enumerate(options):
        if option.name == TARGET and _is_mapping(option.kind):
            checked = replace(option, check=check_targets)
            return (*options[:place], checked, *options[place + 1 :], OF)
    return options


def remaining(original: Sizes, current: Sizes) -> dict[str, float]:
    """The fraction of a model that is left, for each kind of target that is counted."""
    sizes = {
        kind: (getattr(original, name), getattr(current, name)) for kind, name in FIGURES.items()
    }
    return {kind: after / before if before else 1.0 for kind, (before, after) in sizes.items()}


def relative_target(
    target: Mapping[str, float], left: Mapping[str, float]
) -> tuple[dict[str, float], str]:
    """Translate a target of the original into one of the model that a pass is given.

    Args:
        target: kind -> fraction of the original.
        left: fraction of the original that is left, by kind; 1 for kinds it does not name.

    Returns:
        kind -> fraction of the given model, without kinds that are met already; and a note for the
        report, empty where nothing changes.
    """
    shares = {kind: 1.0 if kind == _PER_GROUP else left.get(kind, 1.0) for kind in target}
    relative = {
        kind: fraction / shares[kind]
        for kind, fraction in target.items()
        if fraction < shares[kind] or shares[kind] == 1
    }
    notes = []
    for kind in TARGETS:
        if shares.get(kind, 1) != 1:
            met = "was met before"
            if kind in relative:
                met = f"is {share_text(relative[kind])} of the model it was given"
            notes.append(f"{target_text({kind: target[kind]})} of the original {met}")
    return relative, "; ".join(notes)


def _is_mapping(kind: Any) -> bool:
    """Whether a type is that of mappings, or of mappings and others."""
    kinds = (kind, *typing.get_args(kind))
    return any((typing.get_origin(each) or each) in (dict, Mapping) for each in kinds)
