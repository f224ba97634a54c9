"""The whole path of a run: observe, couple, score, choose, cut, certify, roll back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.allocate.choose import Removal, choose
from onnxprune.allocate.order import aligned, removal_order
from onnxprune.calibration.statistics import Moments, Tap, collect
from onnxprune.cost.shapes import CutCost
from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.groups import find_groups, find_refusals
from onnxprune.coupling.trace import trace
from onnxprune.errors import (
    CalibrationError,
    InputError,
    NothingPrunable,
    RuntimeFailure,
    VerificationError,
)
from onnxprune.importance import GroupView, find_criterion
from onnxprune.model.constants import ConstantValues
from onnxprune.model.execution import Execution
from onnxprune.model.inputs import input_specs
from onnxprune.model.observe import observe
from onnxprune.passes.fold_means import FoldMeans
from onnxprune.progress import silent
from onnxprune.surgery.bias import FullSize
from onnxprune.surgery.slicing import slice_removed, zero_removed
from onnxprune.surgery.statistics import keep_statistics, restrict_statistics
from onnxprune.verification.certificate import Certificate, certify, tolerance_for
from onnxprune.verification.gates import check_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from onnxprune.allocate.order import RemovalStep
    from onnxprune.calibration.samples import Samples
    from onnxprune.coupling.groups import Group, Refused
    from onnxprune.coupling.trace import Coupling
    from onnxprune.model.observe import Observation
    from onnxprune.options import Options
    from onnxprune.progress import Progress

__all__ = ["Analysis", "Built", "analyse", "build", "prune_model", "statistics_of"]


@dataclass(frozen=True)
class Analysis:
    """What is known of a model before anything is chosen.

    Attributes:
        model: the original.
        coupling: its labels.
        groups: all groups of removable units.
        refused: axes that cannot be cut, and why.
    """

    model: ir.Model
    coupling: Coupling
    groups: tuple[Group, ...]
    refused: tuple[Refused, ...]

    def runs(self) -> list[Observation]:
        """The runs the model was observed in, one for each distinct size."""
        facts = self.coupling.facts
        return [facts.first] + ([facts.second] if facts.second is not facts.first else [])


@dataclass(frozen=True)
class Built:
    """A result that passed every check.

    Attributes:
        model: the smaller model.
        removal: what was removed.
        certificate: the comparison with the masked model.
        dropped: groups left whole because the graph could not follow their cut, with the reason.
    """

    model: ir.Model
    removal: Removal
    certificate: Certificate
    dropped: Mapping[str, str]


def analyse(model: ir.Model, options: Options, samples: Samples | None = None) -> Analysis:
    """Observe a model, trace its coupling and find what can be removed.

    Args:
        model: unchanged.
        options: runtime and seed.
        samples: the first of them sets the traced size.

    Raises:
        InputError: when the model does not run on made-up inputs and there are no samples.
        CalibrationError: when the model does not run on the samples.
    """
    rng = np.random.default_rng(options.seed)
    sample = None
    if samples is not None:
        sample = samples.take(2)
        for spec in input_specs(model):
            if spec.name not in sample:
                raise CalibrationError(f"the samples lack input {spec.name!r}")
    try:
        facts = observe(model, options.runtime, rng, sample)
    except RuntimeFailure as error:
        if sample is None:
            raise InputError(f"the model does not run: {error}") from error
        raise CalibrationError(f"the model does not run on the samples: {error}") from error
    coupling = trace(model, facts, normalised=options.normalised_axes)
    groups, refused = tuple(find_groups(coupling)), tuple(find_refusals(coupling))
    return Analysis(model, coupling, groups, refused)


def prune_model(
    analysis: Analysis,
    options: Options,
    samples: Samples | None = None,
    progress: Progress[Any] = silent,
) -> Built:
    """Choose, cut and verify.

    A group whose cut the graph cannot express, or for which the certificate fails, is left whole,
    and the choice is made again without it.

    Raises:
        InputError: for a criterion or compensation that needs calibration when there is none.
        NothingPrunable: when no group is left, or (TargetUnreachable) the target is out of reach.
        VerificationError: when no valid result could be built.
    """
    criterion = find_criterion(options.criterion)
    for what, needed in (
        (f"criterion {options.criterion}", criterion.needs_calibration),
        (f"compensation {options.compensate}", options.compensate != "none"),
    ):
        if needed and samples is None:
            raise InputError(f"{what} looks at activations; give --calibration")
    groups = selected(analysis, options)
    if not groups:
        raise NothingPrunable(_why_nothing(analysis, options))
    moments: Mapping[Tap, Moments] = {}
    if samples is not None and (criterion.needs_calibration or options.compensate == "mean"):
        moments = statistics_of(analysis, samples, options, progress)
    orders = ordered(analysis, groups, options, moments)
    cost = CutCost(analysis.model.graph, analysis.coupling)
    dropped: dict[str, str] = {}
    while True:
        left = [i for i, group in enumerate(groups) if group.name not in dropped]
        removal = choose(
            [groups[i] for i in left],
            [orders[i] for i in left],
            options.target,
            cost,
            comparable=criterion.comparable,
        )
        if not removal.classes and any(share < 1 for share in options.target.values()):
            raise NothingPrunable(_why_nothing(analysis, options, dropped))
        outcome = attempt(analysis, removal, options, moments, samples)
        if isinstance(outcome, Built):
            return replace(outcome, dropped=dropped)
        dropped |= outcome


def selected(analysis: Analysis, options: Options) -> list[Group]:
    """Groups that the include and exclude patterns leave.

    Raises:
        InputError: when a pattern matches nothing in the model.
    """
    readers: dict[str, set[str]] = {}
    for node in analysis.model.graph:
        for value in node.inputs:
            if value is not None and value.name:
                names = {node.name or "", *(output.name or "" for output in node.outputs)}
                readers.setdefault(value.name, set()).update(names - {""})
    everything = {name for names in readers.values() for name in names} | readers.keys()
    for pattern in (*options.include, *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in everything):
            raise InputError(f"the pattern {pattern!r} matches no node or tensor of the model")

    def matches(group: Group, patterns: Sequence[str]) -> bool:
        names = {owned.tensor for owned in group.owned}
        names |= {reader for owned in group.owned for reader in readers.get(owned.tensor, ())}
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [
        group
        for group in analysis.groups
        if (not options.include or matches(group, options.include))
        and not matches(group, options.exclude)
    ]


def statistics_of(
    analysis: Analysis, samples: Samples, options: Options, progress: Progress[Any] = silent
) -> dict[Tap, Moments]:
    """Moments of every activation that a consumer reads a group from."""
    taps = [tap_of(analysis.coupling, one) for group in analysis.groups for one in group.readings]
    return collect(analysis.model, taps, samples, options.runtime, progress)


def tap_of(coupling: Coupling, reading: Any) -> Tap:
    """Where the statistics of a reading are taken: at the consumer's own input."""
    rank = len(coupling.tensors[reading.consumer.tensor].shape)
    return Tap(reading.consumer.tensor, reading.axes, rank)


def ordered(
    analysis: Analysis,
    groups: Sequence[Group],
    options: Options,
    moments: Mapping[Tap, Moments],
) -> list[list[RemovalStep]]:
    """Removal order of every group by the criterion's scores."""
    criterion = find_criterion(options.criterion)
    rng = np.random.default_rng(options.seed)
    constants = ConstantValues(analysis.model, analysis.coupling.facts.constants)
    goal = 1 - options.target["channels"] if options.target.keys() == {"channels"} else None
    orders = []
    for group in groups:
        seen = {
            reading: moments[tap]
            for reading in group.readings
            if (tap := tap_of(analysis.coupling, reading)) in moments
        }
        scores = np.asarray(criterion.score(GroupView(group, constants, seen), rng), np.float64)
        if scores.shape != (group.size,) or not np.isfinite(scores).all():
            raise InputError(
                f"criterion {options.criterion} gave no {group.size} finite scores for {group.name}"
            )
        orders.append(aligned(group, removal_order(group, scores, goal), options.round_to))
    return orders


def attempt(
    analysis: Analysis,
    removal: Removal,
    options: Options,
    moments: Mapping[Tap, Moments],
    samples: Samples | None,
) -> Built | dict[str, str]:
    """Build and certify a removal; on failure return the groups to leave whole, with the reason."""
    try:
        return build(analysis, removal, options, moments, samples)
    except CutError as error:
        guilty = _groups_at(analysis, removal, error.tensor)
        if guilty:
            return dict.fromkeys(guilty, str(error))
        reason = str(error)
    except (VerificationError, RuntimeFailure) as error:
        reason = str(error)
    if len(removal.classes) == 1:
        return dict.fromkeys(removal.classes, reason)
    names = sorted(removal.classes)
    failing: dict[str, str] = {}
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        part = Removal({name: removal.classes[name] for name in half})
        outcome = attempt(analysis, part, options, moments, samples)
        failing |= outcome if isinstance(outcome, dict) else {}
    return failing or dict.fromkeys(names[len(names) // 2 :], reason)


def build(
    analysis: Analysis,
    removal: Removal,
    options: Options,
    moments: Mapping[Tap, Moments],
    samples: Samples | None,
) -> Built:
    """Compensate, mask, slice and check one removal.

    Raises:
        CutError: when the graph cannot express it.
        VerificationError: when a check fails.
        RuntimeFailure: when onnxruntime refuses one of the models.
    """
    full = FullSize(analysis.model.clone(), analysis.coupling)
    dead = removal.dead()
    if options.compensate == "mean" and samples is not None:
        cut = Cut(analysis.coupling, dead)
        FoldMeans(full, cut, moments, samples.take(1), options.runtime)(full.model)
    cut = Cut(full.coupling, dead)
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    restrict_statistics(masked, cut)
    slice_removed(sliced, cut)
    keep_statistics(sliced, cut)
    runs = analysis.runs()
    feeds = [run.feed for run in runs]
    wanted = Execution(masked, options.runtime, optimise=False).run_all(feeds)
    got = Execution(sliced, options.runtime, optimise=False).run_all(feeds)
    tolerance = tolerance_for(analysis.model)
    certificate = certify([run.outputs for run in runs], wanted, got, tolerance)
    if not certificate.holds:
        raise VerificationError(
            f"the sliced model differs from the masked one by {certificate.error:.1e} "
            f"(tolerance {certificate.tolerance:.0e})"
        )
    check_result(analysis.model, sliced, feeds, got, options.runtime, tolerance)
    return Built(sliced, removal, certificate, {})


def _groups_at(analysis: Analysis, removal: Removal, tensor: str) -> list[str]:
    """Names of the groups that remove something of a tensor."""
    labels = analysis.coupling.tensors.get(tensor)
    if labels is None:
        return []
    classes = analysis.coupling.classes
    found = {int(one) for layer in labels.layers for one in np.unique(classes[layer.atoms])}
    return [name for name, classes in removal.classes.items() if found & set(classes)]


def _why_nothing(
    analysis: Analysis, options: Options, dropped: Mapping[str, str] | None = None
) -> str:
    if dropped:
        name, reason = next(iter(dropped.items()))
        return f"nothing can be pruned: {name} stays whole because {reason}"
    if analysis.groups and (options.include or options.exclude):
        return "nothing can be pruned: include and exclude leave no group"
    if analysis.groups:
        return "nothing can be pruned: the target leaves every unit where it is"
    if not analysis.refused:
        return "nothing can be pruned: the model has no weights with a cuttable axis"
    worst = max(analysis.refused, key=lambda one: one.parameters)
    return (
        f"nothing can be pruned: {len(analysis.refused)} axes are refused, the largest is "
        f"{worst.axis}: {worst.reason} (at {worst.node})"
    )
