"""What the fractions of a target refer to, in a pipeline.

A target says what is to remain of the model that the pipeline was given, so that the figures of
all passes mean the same and are those of the summary. With f asked for and r that is left of the
original before the pass, a pass with an option `target` (a mapping) is asked for::

    f / r  of the model it is given        (nothing, where f >= r)

`of: current` asks for f of the model the pass is given. `channels` always does: it is met by every
group for itself, and groups of the original need not be there any more.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxprune.cost.kinds import FIGURES
from onnxprune.declaration import Option
from onnxprune.options import TARGETS, check_targets, share_text, target_text
from onnxprune.report.records import Sizes

TARGET = "target"
"""The option of a pass that says what is to remain."""

OF = Option(
    "of",
    Literal["original", "current"],
    "original",
    "what the fractions of target refer to: original, the model that the pipeline was given, or "
    "current, the one that this pass is given",
)

_NOT_OF_THE_MODEL = "channels"


@dataclass(frozen=True)
class GivenTarget:
    """A target as the pass itself is to be asked for it.

    Attributes:
        target: kind -> fraction of the model that the pass is given; empty where nothing is left
            to do.
        note: what was made of what was asked, in words; empty where it is the same.
    """

    target: dict[str, float]
    note: str = ""


def with_of(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The options of a pass; for one that takes targets, with `of`, and its targets checked."""
    for place, option in enumerate(options):
        if option.name == TARGET and _is_mapping(option.kind):
            checked = replace(option, check=check_targets)
            return (*options[:place], checked, *options[place + 1 :], OF)
    return options


def remaining(original: Sizes, current: Sizes) -> dict[str, float]:
    """What is left of a model, by kind of target; of the kinds that are counted."""
    found = {}
    for kind, attribute in FIGURES.items():
        before = getattr(original, attribute)
        found[kind] = getattr(current, attribute) / before if before else 1.0
    return found


def given_target(target: Mapping[str, float], left: Mapping[str, float]) -> GivenTarget:
    """Translate a target of the original.

    Args:
        target: kind -> fraction of the original.
        left: what is left of the original by kind; 1 for those it does not name.
    """
    shares = {kind: 1.0 if kind == _NOT_OF_THE_MODEL else left.get(kind, 1.0) for kind in target}
    given = {
        kind: fraction / shares[kind]
        for kind, fraction in target.items()
        if fraction < shares[kind] or shares[kind] == 1
    }
    changed = [kind for kind in target if shares[kind] != 1]
    if not changed:
        return GivenTarget(given)
    said = [
        f"{target_text({kind: target[kind]})} of the original "
        + (
            f"is {share_text(given[kind])} of the model it was given"
            if kind in given
            else "was met before"
        )
        for kind in (one for one in TARGETS if one in changed)
    ]
    return GivenTarget(given, "; ".join(said))


def _is_mapping(kind: Any) -> bool:
    """Whether a type is that of mappings, or of mappings and others."""
    kinds = (kind, *typing.get_args(kind))
    return any((typing.get_origin(one) or one) in (dict, Mapping) for one in kinds)
