"""The options of a run, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxprune.errors import InputError, nearest
from onnxprune.model.runtime import Runtime

LATENCY = "latency"
"""The target that is measured, not counted."""

SIZE = "size"
"""The target whose count is a forecast until there is a file."""

PARAMS = "params"
"""The target that biases count for which compensation adds."""

TARGETS = ("channels", PARAMS, "macs", SIZE, "memory", LATENCY)
COMPENSATIONS = ("none", "mean", "least-squares")
ALLOCATIONS = ("auto", "uniform", "global")


@dataclass(frozen=True)
class PruneOptions:
    """What to remove, how to choose it and how to make up for it.

    Attributes:
        target: kind -> fraction of the original that is to remain.
        criterion: name of the importance criterion.
        compensate: none, mean or least-squares.
        loss: of a criterion by gradients: cross-entropy, mse, a function, or None for what suits
            each output.
        allocation: how the removal is spread over the groups: uniform, global (by comparable
            scores), or auto, which tries several ways and keeps what diverges least.
        include: name patterns; when there are any, only groups that own a matching tensor, or a
            tensor read by a matching node, are pruned.
        exclude: name patterns; tensors that match, and tensors of nodes that match, stay whole.
        round_to: every axis that is cut keeps a multiple of this many units; 1 leaves widths as
            they come, auto takes the steps measured on this machine where latency is a target,
            else 1.
        normalised_axes: axes that LayerNormalization, RMSNormalization or a mean runs over may be
            cut; the removed entries then count as zeros.
        lossless: take out first what goes without a trace, wherever anything is compensated.
        components: with least squares, choose among components instead of units wherever only
            linear maps are done to them.
        augment: views of calibration images to fit layers on as well: flip, shift.
        steps: in how many steps to prune; after each, layers are solved and units ranked anew.
        blocks: whole residual branches may go too, where outputs then diverge less.
        max_drop: how far the measured quality may fall, in its own unit; None for no limit. Every
            fourth sample is then kept for measuring.
        seed: seed of everything random.
        runtime: providers and threads.
    """

    target: Mapping[str, float] = field(default_factory=lambda: {"channels": 0.5})
    criterion: str = "l2"
    compensate: str = "none"
    loss: str | Callable[..., Any] | None = None
    allocation: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    round_to: int | str = 1
    normalised_axes: bool = False
    lossless: bool = True
    components: bool = True
    augment: tuple[str, ...] = ()
    steps: int = 1
    blocks: bool = False
    max_drop: float | None = None
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)

    @property
    def multiple(self) -> int:
        """What every axis that is cut keeps a multiple of without exception; 1 with auto."""
        return self.round_to if isinstance(self.round_to, int) else 1

    def to_dict(self) -> dict[str, Any]:
        """Options as they are written into a plan."""
        return {
            "target": dict(self.target),
            "criterion": self.criterion,
            "compensate": self.compensate,
            "loss": getattr(self.loss, "__name__", self.loss),
            "allocation": self.allocation,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "round_to": self.round_to,
            "normalised_axes": self.normalised_axes,
            "lossless": self.lossless,
            "components": self.components,
            "augment": list(self.augment),
            "steps": self.steps,
            "blocks": self.blocks,
            "max_drop": self.max_drop,
            "seed": self.seed,
        }


def check_targets(target: Mapping[str, float]) -> dict[str, float]:
    """Return targets as floats.

    Raises:
        InputError: for an unknown kind, or a fraction that is not above 0 and at most 1.
    """
    if not target:
        raise InputError(f"no target; give one of {', '.join(TARGETS)}, such as macs=0.5")
    checked = {}
    for kind, fraction in target.items():
        if kind not in TARGETS:
            raise InputError(f"unknown target {kind!r}{nearest(str(kind), TARGETS)}")
        try:
            value = float(fraction)
        except (TypeError, ValueError):
            raise InputError(f"target {kind}={fraction!r} is not a number") from None
        if not 0 < value <= 1:
            raise InputError(
                f"target {kind}={fraction} is out of range: it is the fraction that is to remain, "
                "above 0 and at most 1"
            )
        checked[kind] = value
    return checked


def check_max_drop(limit: float | None) -> float | None:
    """Return a limit as a float.

    Raises:
        InputError: when it is no finite number from 0 on.
    """
    if limit is None:
        return None
    try:
        value = float(limit)
    except (TypeError, ValueError):
        raise InputError(f"max_drop {limit!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"max_drop must be a number from 0 on, not {limit}")
    return value


def share_text(share: float) -> str:
    """A share, or another number, with at most four significant digits."""
    return f"{share:.4g}"


def target_text(target: Mapping[str, float]) -> str:
    """Shares by kind, as a target is given on the command line: `macs=0.5, params=0.7`."""
    return ", ".join(f"{kind}={share_text(share)}" for kind, share in target.items())
