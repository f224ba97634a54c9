"""The compensations by name: what is done about the units that are removed.

A compensation is a row of the table here, with its mathematics in a file of its own. It changes
the weights and biases that are kept, at full width; what is removed is cut away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from onnxprune.calibration.batches import held_out_part
from onnxprune.calibration.bodies import seen_bodies
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.moments import BATCH, Calibration
from onnxprune.compensation.accounts import accounted, unfolded
from onnxprune.compensation.fold_means import fold_means
from onnxprune.compensation.least_squares import LayerFit, LeastSquares, OpenChoice, Settings
from onnxprune.compensation.regression.linear_layers import replaceable_layers
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.errors import InputError
from onnxprune.model.bodies import places
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.verification.divergence import divergence


@dataclass(frozen=True)
class Effort:
    """How much is done for one result.

    Attributes:
        settings: of the regressions of least squares.
        open_groups: where possible take only the number of units from the removal, and choose
            which when their consumer is re-fitted, on what the pruned model computes there.
    """

    settings: Settings
    open_groups: bool = False


@dataclass(frozen=True)
class Compensated:
    """A model at full width whose kept weights make up for a removal.

    Attributes:
        full: the model and its coupling.
        removal: the units to remove.
        fits: the layers that were to be re-fitted, those among them that could not be.
        unfolded: readers of removed units that nothing makes up for, with the reason.
        divergence: of its outputs from the reference model's on batches that were not fitted; None
            where nothing was measured.
    """

    full: EditableModel
    removal: Removal
    fits: tuple[LayerFit, ...] = ()
    unfolded: Mapping[str, str] = field(default_factory=dict)
    divergence: float | None = None


@dataclass(frozen=True)
class Task:
    """What to compensate for, and with what.

    Attributes:
        analysis: the model; its `original` is what layers are fitted to.
        removal: the units to remove.
        calibration: statistics and batches; None where the compensation needs no samples.
        context: runtime, seed and progress callback.
        effort: how much to do.
        first: by group name, units that the model does not need; they go before all others.
    """

    analysis: Analysis
    removal: Removal
    calibration: Calibration | None
    context: RunContext
    effort: Effort
    first: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def full_model(self) -> EditableModel:
        """A copy of the model at full width, to be changed."""
        return EditableModel(self.analysis.model.clone(), self.analysis.coupling)

    def fold_means(self, full: EditableModel, cut: Cut, skip: Collection[str] = ()) -> None:
        """Fold the means of removed units into the biases of all consumers but those to skip."""
        assert self.calibration is not None
        samples = self.calibration.samples
        # a branch need not run on the first
        feeds = chain([samples.take(1)], samples.batches(BATCH))
        fold_means(full, cut, self.calibration.moments, feeds, self.context.runtime, skip)

    def unfolded(self, removal: Removal, fits: Sequence[LayerFit] = ()) -> Mapping[str, str]:
        """Readers of removed units that nothing makes up for; see `accounts.unfolded`."""
        assert self.calibration is not None
        cut = Cut(self.analysis.coupling, removal.removed_units())
        return unfolded(self.analysis, cut, self.calibration.moments, fits)


@dataclass(frozen=True)
class Compensation:
    """Makes up for a removal in the weights and biases that are kept.

    Attributes:
        name: what `--compensate` calls it.
        apply: compensates a copy of the model; raises CutError when the graph cannot express the
            removal, RuntimeFailure when onnxruntime refuses a part of a model.
        changes_weights: whether it does anything to the weights and biases that are kept.
        needs_samples: whether it looks at activations.
        refits_layers: whether layers are re-fitted, one after another: then allocations are
            compared by what their outputs diverge, and units may be rewritten into components.
        weaker: name of the compensation to fall back to where this one fails; empty for none.
    """

    name: str
    apply: Callable[[Task], Compensated]
    changes_weights: bool = True
    needs_samples: bool = True
    refits_layers: bool = False
    weaker: str = ""


def no_compensation(task: Task) -> Compensated:
    """The kept weights stay as they are."""
    return Compensated(task.full_model(), task.removal)


def mean_compensation(task: Task) -> Compensated:
    """What removed units contributed on average goes into the biases of their consumers."""
    full = task.full_model()
    task.fold_means(full, Cut(full.coupling, task.removal.removed_units()))
    return Compensated(full, task.removal, unfolded=task.unfolded(task.removal))


def least_squares_compensation(task: Task) -> Compensated:
    """Layers whose input or output is cut are re-fitted; means are folded into all others."""
    assert task.calibration is not None
    full, removal, analysis = task.full_model(), task.removal, task.analysis
    cut = Cut(full.coupling, removal.removed_units())
    solvable = _solvable(full, cut, task)
    task.fold_means(full, cut, solvable)
    open_groups = task.effort.open_groups
    choices = _open_choices(task, solvable) if open_groups else []
    fixed = dict(removal.units)
    for choice in choices:
        del fixed[choice.group.name]
    refit = LeastSquares(
        full,
        analysis.original,
        task.calibration.feeds,
        task.context,
        task.effort.settings,
        sensitivity=task.calibration.sensitivity,
    ).fit(Removal(fixed).removed_units(), choices, analysis.altered)
    whole = Removal({**fixed, **refit.chosen})
    fits = accounted(analysis, Cut(analysis.coupling, whole.removed_units()), refit.layers)
    return Compensated(
        full,
        whole,
        fits,
        task.unfolded(whole, fits),
        divergence(analysis.original, held_out_part(refit.outputs)),
    )


COMPENSATIONS = (
    Compensation("none", no_compensation, changes_weights=False, needs_samples=False),
    Compensation("mean", mean_compensation, weaker="none"),
    Compensation("least-squares", least_squares_compensation, refits_layers=True, weaker="mean"),
)
"""All there are; a new one is a function in a file of its own and a row here."""


def find_compensation(name: str) -> Compensation:
    """Return the compensation of a name.

    Raises:
        InputError: for an unknown name; lists those there are.
    """
    for compensation in COMPENSATIONS:
        if compensation.name == name:
            return compensation
    names = ", ".join(compensation.name for compensation in COMPENSATIONS)
    raise InputError(f"unknown compensation {name!r}; there are {names}")


def _solvable(full: EditableModel, cut: Cut, task: Task) -> set[str]:
    """Outputs of the layers that least squares re-fits: few enough unknowns, and they run."""
    assert task.calibration is not None
    largest, closed = task.effort.settings.largest, full.coupling.closed
    inner = places(full.model.graph, closed)
    feeds = ((1, feed) for feed in task.calibration.feeds)
    ran = seen_bodies(full.model, feeds, task.context.runtime, closed)
    idle = {id(place.graph) for key, place in inner.items() if key not in ran}
    outputs = set()
    for layer in replaceable_layers(full.model, full.coupling):
        if id(layer.node.graph) in idle:
            continue
        kept = layer.kept_unknowns(cut)
        if kept is not None and kept.shape[1] <= largest:
            outputs.add(layer.node.outputs[0].name or "")
    return outputs


def _open_choices(task: Task, solvable: set[str]) -> list[OpenChoice]:
    """Groups whose only consumer may choose the units."""
    choices = []
    for group in task.analysis.groups:
        removed = task.removal.units.get(group.name, ())
        free = not len(group.constraints) and len(group.axes) == 1 and len(group.readings) == 1
        if removed and free:
            consumer = group.readings[0].consumer
            if consumer.group == 1 and consumer.node in solvable:
                first = [unit for unit in task.first.get(group.name, ()) if unit in removed]
                choices.append(OpenChoice(group, len(removed), tuple(first)))
    return choices
