"""What the fractions of a target refer to, in a pipeline.

A target is a fraction of the model that the pipeline was given, so that the figures of all passes
mean the same and are those of the summary. For a target f, and a fraction r of the original that is
left before the pass, a pass with an option `target` (a mapping) gets the target::

    f / r  of the model it is given        (nothing, where f >= r)

With `of: current` it gets f. `channels` is always f: every group meets it by itself, and groups of
the original may no longer exist.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from onnxprune.cost.kinds import FIGURES
from onnxprune.declaration import Option
from onnxprune.options import TARGETS, check_targets, share_text, target_text
from onnxprune.report.records import Sizes

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
