"""How a model is to be pruned, as the functions of the API take it, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from onnxprune.calibration.augment import VIEWS
from onnxprune.calibration.scripts import FUNCTION, load_function
from onnxprune.errors import InputError
from onnxprune.gradients.losses import LOSSES
from onnxprune.importance.registry import find_criterion
from onnxprune.model.runtime import Runtime
from onnxprune.options import (
    ALLOCATIONS,
    COMPENSATIONS,
    PruneOptions,
    check_max_drop,
    check_targets,
)


class Method(TypedDict, total=False):
    """Arguments that `prune`, `sweep` and `sensitivity` have in common; see `prune`."""

    criterion: str | None
    loss: str | Callable[..., Any] | None
    compensate: str | None
    allocation: str
    include: Sequence[str]
    exclude: Sequence[str]
    round_to: int | str
    steps: int
    blocks: bool
    normalised_axes: bool
    lossless: bool
    components: bool
    augment: Sequence[str]
    seed: int
    providers: Sequence[str]
    threads: int


def check_method(
    target: Mapping[str, float],
    *,
    calibrated: bool,
    max_drop: float | None = None,
    criterion: str | None = None,
    loss: str | Callable[..., Any] | None = None,
    compensate: str | None = None,
    allocation: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | str = "auto",
    steps: int = 1,
    blocks: bool = False,
    normalised_axes: bool = False,
    lossless: bool = True,
    components: bool = True,
    augment: Sequence[str] = (),
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> PruneOptions:
    """Return the options of a run; all but `calibrated` (whether there are samples) as `prune`.

    Raises:
        InputError: naming the argument that cannot be used.
    """
    runtime = Runtime(tuple(providers), threads)
    runtime.validate()
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, not {seed}")
    if round_to != "auto" and not (isinstance(round_to, int) and round_to >= 1):
        raise InputError(f"round_to must be auto, or a whole number from 1 on, not {round_to}")
    if steps < 1:
        raise InputError(f"steps must be 1 or more, not {steps}")
    options = PruneOptions(
        target=check_targets(target),
        criterion=criterion or ("reconstruction" if calibrated else "l2"),
        loss=_checked_loss(loss),
        compensate=compensate or ("least-squares" if calibrated else "none"),
        allocation=allocation,
        include=tuple(include),
        exclude=tuple(exclude),
        round_to=round_to,
        steps=steps,
        blocks=blocks,
        normalised_axes=normalised_axes,
        lossless=lossless,
        components=components,
        augment=tuple(augment),
        max_drop=check_max_drop(max_drop),
        seed=seed,
        runtime=runtime,
    )
    find_criterion(options.criterion)
    check_choice("compensation", options.compensate, COMPENSATIONS)
    check_choice("allocation", options.allocation, ALLOCATIONS)
    if blocks and (options.compensate != "least-squares" or not calibrated):
        raise InputError(
            "blocks are weighed against units by what outputs diverge after least squares; give "
            "--calibration, and no other compensation"
        )
    if blocks and "channels" in options.target:
        raise InputError(
            "a target of channels is met by every group for itself, so that blocks save nothing; "
            "give macs, params, size, memory or latency"
        )
    for view in options.augment:
        check_choice("augmentation", view, tuple(VIEWS))
    return options


def _checked_loss(loss: str | Callable[..., Any] | None) -> str | Callable[..., Any] | None:
    """A known name, or a function."""
    if not isinstance(loss, str) or loss in LOSSES:
        return loss
    if FUNCTION.fullmatch(loss):
        return load_function(loss, "loss")
    raise InputError(f"unknown loss {loss!r}; there are {', '.join(LOSSES)}, or module.py:function")


def check_choice(what: str, name: str, known: Sequence[str]) -> None:
    """Require one of the known names.

    Raises:
        InputError: listing them.
    """
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; there are {', '.join(known)}")
