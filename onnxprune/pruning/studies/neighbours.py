"""Trials that budgets of a sweep share.

Which allocation is best changes little from a budget to the next. Of four and more budgets of one
kind all allocations are tried at the smallest and at the largest only::

    macs   0.9    0.8        0.7        0.6        0.5
           all    those that were best at 0.9      all
                  or 0.5: three at most

What a budget in between tries depends on the budgets that were asked for, not on which of them are
finished already, so that an interrupted sweep goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxprune.errors import NothingPrunable
from onnxprune.pruning.run import PrunedModel, PruneRun

Target = Mapping[str, float]

_FEWEST = 4
"""Budgets of a kind from which on they share trials."""

_NEAR = 2
"""So many of the best of the nearer of the outermost budgets are tried; of the other the best."""


class SharedTrials:
    """Trials of a sweep.

    Args:
        run: the model.
        targets: all budgets of the sweep.
    """

    def __init__(self, run: PruneRun, targets: Sequence[Target]) -> None:
        self._run = run
        self._found: dict[tuple[str, float], Sequence[str]] = {}
        options = run.method.options
        shares: dict[str, list[float]] = {}
        tries = options.allocation == "auto" and run.method.compensation.refits_layers
        if tries and options.steps == 1 and not options.blocks:
            for target in targets:
                for kind, share in target.items() if len(target) == 1 else ():
                    shares.setdefault(kind, []).append(share)
        self._ends = {
            kind: (min(each), max(each)) for kind, each in shares.items() if len(each) >= _FEWEST
        }

    def outermost_first(self, targets: Sequence[Target]) -> list[Target]:
        """The same targets in the order in which they are best taken."""
        return sorted(targets, key=lambda target: self._end(target) is None)

    def run_for(self, target: Target) -> PruneRun:
        """The run, restricted to the allocations that are tried for a target."""
        (kind, share), *more = target.items()
        if more or kind not in self._ends or share in self._ends[kind]:
            return self._run
        ends = sorted(self._ends[kind], key=lambda end: abs(end - share))
        near, far = (self._best(kind, end) for end in ends)
        return self._run.among(list(dict.fromkeys([*near[:_NEAR], *far[:1]])))

    def note(self, pruned: PrunedModel) -> None:
        """Remember the trials of a result."""
        kind = self._end(pruned.target)
        if kind is not None:
            self._found[kind, pruned.target[kind]] = _ordered(pruned.trials)

    def _end(self, target: Target) -> str | None:
        """The kind of which a target is an outermost budget."""
        (kind, share), *more = target.items()
        return kind if not more and share in self._ends.get(kind, ()) else None

    def _best(self, kind: str, share: float) -> Sequence[str]:
        if (kind, share) not in self._found:
            try:
                self._found[kind, share] = _ordered(self._run.trials({kind: share}))
            except NothingPrunable:
                self._found[kind, share] = ()
        return self._found[kind, share]


def _ordered(trials: Mapping[str, float]) -> list[str]:
    return sorted(trials, key=trials.__getitem__)
