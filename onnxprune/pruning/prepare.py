"""What has to be known before units are chosen: costs of any cut, gradients, removal orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import divide
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.latency.table import LatencyTable, group_multiples
from onnxprune.coupling.analysis import Analysis, tap_of
from onnxprune.coupling.group_view import MaskGradients
from onnxprune.coupling.groups import Group, Reading
from onnxprune.gradients.divergence import DivergenceGradient
from onnxprune.gradients.losses import Objective
from onnxprune.gradients.masks import GroupGradients, mask_gradients
from onnxprune.importance.criterion import RankingInputs
from onnxprune.importance.gradient import Fisher
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.execution import Execution
from onnxprune.options import LATENCY
from onnxprune.progress import during
from onnxprune.pruning.method import Method
from onnxprune.pruning.workspace import Workspace

INFORMATION = "information"
"""Name of the allocation by Fisher information along removal orders of error curves."""

_INFORMING = 256
"""Samples that say enough for allocations that are compared with others on more."""


@dataclass(frozen=True)
class Costs:
    """What any cut leaves of a model.

    Attributes:
        model: the cost model.
        multiples: of how many units each group keeps a multiple, by name; 1 where it has no entry.
    """

    model: CutCost
    multiples: Mapping[str, int]


def costs_of(
    analysis: Analysis,
    groups: Sequence[Group],
    round_to: int | str,
    context: RunContext,
    whole: Mapping[str, float] | None,
    *,
    timed: bool,
) -> Costs:
    """Set up the cost model.

    Args:
        analysis: the model.
        groups: those that may be cut.
        round_to: the option; "auto" measures the steps of kernels where latency is a target.
        context: runtime and progress callback.
        whole: costs that targets are fractions of; None for those of the model.
        timed: whether latency is a target: kernels are timed.
    """
    graph, coupling = analysis.model.graph, analysis.coupling
    multiples = {}
    if isinstance(round_to, int):
        multiples = {group.name: round_to for group in groups}
    if not timed:
        return Costs(CutCost(graph, coupling, whole=whole), multiples)
    table = LatencyTable(analysis.model, coupling.facts, context.runtime)
    if round_to == "auto":
        work = partial(group_multiples, table, graph, coupling, groups)
        multiples = during(context.progress, "timing kernels", work)
    return Costs(CutCost(graph, coupling, {LATENCY: table.seconds}, whole), multiples)


def loss_gradients(
    workspace: Workspace, groups: Sequence[Group], method: Method, context: RunContext
) -> GroupGradients:
    """Gradients of the loss where units become zero, or their mean where means are folded.

    Args:
        workspace: the model.
        groups: whose units become zero.
        method: criterion, compensation and loss.
        context: labels, runtime and seed.

    Returns:
        gradients by group; nothing for a criterion that needs none.
    """
    calibration = workspace.calibration
    if calibration is None or not groups or not method.criterion.needs_gradients:
        return GroupGradients({}, {})
    return mask_gradients(
        workspace.current.model,
        groups,
        calibration.samples,
        Objective(method.options.loss, context.labels),
        context,
        _folded_means(workspace, groups, method),
    )


def _folded_means(
    workspace: Workspace, groups: Sequence[Group], method: Method
) -> dict[Reading, NDArray[np.float64]]:
    """What units become when they go, at each reading: their mean where that is folded."""
    if workspace.calibration is None or not method.compensation.changes_weights:
        return {}
    coupling, moments = workspace.current.coupling, workspace.calibration.moments
    readings = [reading for group in groups for reading in group.readings]
    taps = {reading: tap_of(coupling, reading) for reading in readings}
    return {reading: moments[tap].mean for reading, tap in taps.items() if tap in moments}


def rank_groups(
    workspace: Workspace,
    groups: Sequence[Group],
    gradients: Mapping[str, MaskGradients],
    target: Mapping[str, float],
    method: Method,
    context: RunContext,
) -> list[RankedGroup]:
    """Rank the units of every group by the criterion.

    Args:
        workspace: the model.
        groups: those to rank.
        gradients: by group name, for a criterion that needs them.
        target: kind -> fraction to remain; orders end where a target of channels alone is met.
        method: the criterion.
        context: runtime, seed and progress callback.
    """
    goal = removal_goal(target)
    inputs = RankingInputs(
        workspace.current, context, workspace.calibration, gradients, workspace.lossless, goal
    )
    return method.criterion.rank(inputs, groups)


def information(
    workspace: Workspace, groups: Sequence[Group], method: Method, context: RunContext
) -> GroupGradients:
    """Gradients of the divergence that allocations by Fisher information are made from.

    Args:
        workspace: the model.
        groups: those that may be cut.
        method: there are such allocations only where its criterion has error curves, its
            compensation re-fits layers and its allocation is chosen among several.
        context: runtime, seed and progress callback.

    Raises:
        InputError: where they get to no group.
    """
    tried = method.criterion.measures_curves and method.compensation.refits_layers
    if not tried or method.options.allocation != "auto":
        return GroupGradients({}, {})
    calibration = workspace.calibration
    if calibration is None or not calibration.feeds or not groups:
        return GroupGradients({}, {})
    model = workspace.current.model
    outputs = Execution(model, context.runtime, arena=False).run_all(calibration.feeds)
    gradient = DivergenceGradient(model, outputs, np.random.default_rng(context.seed))
    means = _folded_means(workspace, groups, method)
    samples = calibration.samples
    every = (samples.count or 0) // _INFORMING
    some = divide(samples, every)[1] if every > 1 else samples
    return mask_gradients(model, groups, some, gradient, context, means)


def rank_by_fisher(
    workspace: Workspace,
    groups: Sequence[Group],
    gradients: Mapping[str, MaskGradients],
    method: Method,
    context: RunContext,
) -> list[RankedGroup]:
    """Rank the units of every group by Fisher information, for one more allocation to try.

    Args:
        workspace: the model.
        groups: those to rank.
        gradients: from `information`; groups without any are left out.
        method: of the run.
        context: runtime, seed and progress callback.
    """
    known = [group for group in groups if group.name in gradients]
    return rank_groups(
        workspace, known, gradients, {}, replace(method, criterion=Fisher()), context
    )


def by_information(
    ranked: Sequence[RankedGroup], gradients: Mapping[str, MaskGradients]
) -> list[RankedGroup]:
    """The same orders of removal with curves of what the answers lose instead of the readers.

        information(k) = sum of E[g_j^2] / 2 over the units j that the first k steps remove

    The order says which units others can make up for, the information how much a group as a whole
    matters. `towards information` is the geometric mean with the error of the readers after they
    were re-fitted, in units of the divergence where these are known of all groups.

    Args:
        ranked: groups with error curves.
        gradients: from `information`.

    Returns:
        nothing where gradients do not get to all groups, so that groups cannot be compared.
    """
    known = all(entry.curves and entry.group.name in gradients for entry in ranked)
    if not known:
        return []
    curved = [each for entry in ranked for each in (entry, *entry.parts)]
    scaling = "loss" if all("loss" in each.curves for each in curved) else "raw"
    return [
        _informed(entry, gradients[entry.group.name].mean_square / 2, scaling) for entry in ranked
    ]


def _informed(entry: RankedGroup, scores: NDArray[np.float64], scaling: str) -> RankedGroup:
    units = dict(zip(entry.group.units.tolist(), scores.tolist(), strict=True))
    lost = np.cumsum([sum(units.get(unit, 0.0) for unit in step.units) for step in entry.steps])
    curves = {INFORMATION: lost, f"towards {INFORMATION}": np.sqrt(lost * entry.curves[scaling])}
    parts = tuple(_informed(part, scores, scaling) for part in entry.parts)
    return replace(entry, curves=curves, parts=parts)


def removal_goal(target: Mapping[str, float]) -> float | None:
    """Fraction of every group at which removal orders end; None for as far as possible."""
    return 1 - target["channels"] if target.keys() == {"channels"} else None
