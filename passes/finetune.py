"""Fine-tuning: weights are trained to answer as a teacher does, on samples without labels.

Formula, for outputs z of the model, z' of the teacher, and tensors h, h' inside that are the same
units in both (sums of residual blocks, or what layers read), with the softmax p at temperature T::

    loss = T^2 KL(p(z' / T), p(z / T))  +  c mean |h - h'|^2 / var h'        T = 2, class scores
    loss = mean |z - z'|^2 / var z'     +  c mean |h - h'|^2 / var h'        any other output

Before::

    x -> Conv(W, b) -> Relu -> ... -> z

After::

    x -> Conv(W', b') -> Relu -> ... -> z        the same graph with other numbers

Weights, biases, scales and shifts are trained, matrices by orthogonalised momentum, the rest by
Adam; the learning rate comes from short probes. Every fourth sample, of 256 and more every eighth,
is kept out of training; the check-point that diverges least from the teacher on these is the
result, and where none is better than the start, the start. Steps are counted, not seconds, so that
the same options give the same bytes. With labels their loss is learnt as well.

The teacher is any model with the same inputs and outputs. Where the model was cut from it, the plan
says which units of a tensor inside are left; of tensors of the same name and shape all are. Groups
that were rewritten into components are left out.

Conditions: at least one weight with a gradient; those before an operator without one stay as they
are and are named. The structure of the graph is the same, and the result is checked as that of any
pass. Its answers have to follow the teacher's.

Source: Hinton et al. 2015; Romero et al. 2015 (FitNets). `onnxprune/distillation/` has the engine,
and the sources of its optimiser.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples, divide
from onnxprune.coupling.analysis import analyse
from onnxprune.declaration import Option
from onnxprune.distillation.distil import Distilled, distil
from onnxprune.distillation.features import KeptIndices
from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.importance.registry import resolve_options
from onnxprune.model.execution import Execution
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime
from onnxprune.options import FINETUNE_OPTIONS, PruneOptions
from onnxprune.passes.pipeline.protocol import Pass, Reference
from onnxprune.passes.pipeline.quality import PipelineQuality
from onnxprune.progress import Progress, silent
from onnxprune.pruning.blocks import without_blocks
from onnxprune.pruning.finetune import distillation_of, kept_indices
from onnxprune.pruning.plan import Plan, planned_removal
from onnxprune.pruning.quality import held_out_every, known_labels, loss_labels, quality_measure
from onnxprune.report.accounts import tuning_of
from onnxprune.verification.metrics import read_metric

_OWN = "the model itself"
_ORIGINAL = "the original"
_UNTAUGHT = (
    "the model is its own teacher, from which it has nothing to learn without labels: nothing was "
    "changed. Give --teacher, such as the model that this one was pruned from, or --labels"
)


class Finetune(Pass, ir.passes.FunctionalPass):
    """Train all weights to answer as a teacher does; no labels needed.

    Args:
        samples: calibration samples.
        runtime: onnxruntime providers and threads.
        seed: of the order of samples and of their views.
        progress: progress callback of long loops.
        plan: what `plan` was after the run that is to be repeated; None to find the learning rate.
        quality: what the pipeline is asked of quality, for its labels; None for nothing.
        reference: what answers are to follow, the teacher where none is set; None for the model.
        options: those of `onnxprune.finetune`.

    Attributes:
        plan: learning rate, number of steps, and the step of the check-point that was kept.
        tuning: the course of the training.
        quality: on held-out samples, where labels or a metric say what it is.

    Raises:
        InputError: without samples, for options that cannot be used, or a plan that lacks what it
            was made with.
    """

    declared: ClassVar[tuple[Option, ...]] = FINETUNE_OPTIONS

    def __init__(
        self,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
        plan: Mapping[str, Any] | None = None,
        quality: PipelineQuality | None = None,
        reference: Reference | None = None,
        **options: Any,
    ) -> None:
        super().__init__(RunContext(samples, None, runtime or Runtime(), seed, progress))
        if samples is None:
            raise InputError("fine-tuning runs the model on samples; give --calibration")
        self._samples = samples
        self._to_repeat, self._shared, self._reference = plan, quality, reference
        self._teacher = options.pop("teacher", None)
        self._pruning = options.pop("pruning", None)
        self._labels, self._metric = options.pop("labels", None), options.pop("metric", None)
        self._embeddings = bool(options.pop("embeddings", False))
        self._options = self._checked(options)
        if isinstance(self._teacher, (str, os.PathLike)) and not Path(self._teacher).is_file():
            raise InputError(f"teacher {os.fspath(self._teacher)}: no such file")
        read_metric(self._metric)
        self._require_planned()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Train.

        Raises:
            InputError: for a teacher, plan or labels that do not fit the model.
            CalibrationError: for too few samples to hold any out.
            NothingPrunable: when no weight can be trained.
        """
        teacher, name = self._read_teacher(model)
        labels = known_labels(self._labels, self._samples, self._options)
        if labels is None and self._shared is not None:
            labels = self._shared.labels
        # what is no class and no target is for the metric alone
        learnt = loss_labels(labels, self._options)
        if teacher is model and learnt is None:
            self.notes = (_UNTAUGHT,)
            return ir.passes.PassResult(model.clone(), modified=False)
        fitted, held_out = divide(self._samples, held_out_every(self._samples, self._options))
        measure = quality_measure(
            teacher,
            held_out,
            None if self._labels is None else labels,
            self._metric,
            self._options,
            self.context.runtime,
        )
        options = replace(
            distillation_of(self._options, self._to_repeat),
            embeddings=self._embeddings,
            labels_alone=teacher is model,
        )
        context = replace(self.context, samples=fitted, labels=learnt)
        try:
            tuned = distil(model, teacher, options, context, self._kept(teacher), held_out)
        except RuntimeFailure:
            self._require_running(teacher, name)
            raise
        if measure is not None:
            before, after = measure.of(model), measure.of(tuned.model)
            self.quality = replace(after, original=before.result, held_out=True)
        self._account(tuned, name)
        return ir.passes.PassResult(tuned.model, modified=bool(tuned.course.best))

    def _read_teacher(self, model: ir.Model) -> tuple[ir.Model, str]:
        """The teacher, and what reports call it.

        Raises:
            InputError: when it cannot be read, or has other inputs or outputs than the model.
        """
        if self._teacher is None:
            if self._reference is None or self._reference.model is model:
                return model, _OWN
            return self._reference.model, _ORIGINAL
        loaded = load(self._teacher)
        name = str(loaded.path) if loaded.path is not None else "a model in memory"
        _require_same_interface(model, loaded.model, f"the teacher, {name},")
        self.teacher = loaded.model
        return loaded.model, name

    def _require_running(self, teacher: ir.Model, name: str) -> None:
        """Require that a teacher takes the samples, in batches of any size as the model does.

        Raises:
            InputError: when it does not.
        """
        for rows in (2, 3):
            feed = self._samples.take(rows)
            try:
                Execution(teacher, self.context.runtime).run(feed)
            except RuntimeFailure as error:
                raise InputError(
                    f"the teacher, {name}, does not run on the samples, {rows} at a time: {error}"
                ) from error

    def _kept(self, teacher: ir.Model) -> KeptIndices | None:
        """Which units of the teacher's tensors the model has; None for those of equal shape.

        Raises:
            InputError: when the plan was made for another model, or removes nothing.
        """
        plan = self._plan_of_pruning()
        if plan is None:
            return None
        context = replace(self.context, progress=silent)
        normalised = PruneOptions.from_dict(plan.options).normalised_axes
        analysis = analyse(teacher, context, normalised_axes=normalised)
        if plan.blocks:
            analysis = without_blocks(analysis, plan.blocks, context, normalised_axes=normalised)
        return kept_indices(analysis, planned_removal(analysis, plan), plan.components)

    def _plan_of_pruning(self) -> Plan | None:
        """The plan by which the model was cut from the teacher; None where none is known."""
        if self._pruning is None:
            own = self._teacher is None and self._reference is not None
            cut = self._reference.pruning if own and self._reference is not None else None
            return None if cut is None else Plan.from_dict(cut)
        plan, where = Plan.load(self._pruning), os.fspath(self._pruning)
        if plan.steps:
            first = plan.steps[0]
            if first.name != "prune" or first.plan is None:
                raise InputError(
                    f"{where}: the plan does not begin with the pass prune, which would say what "
                    "was cut from the teacher"
                )
            plan = replace(Plan.from_dict(first.plan, where), model=plan.model)
        if self._teacher is not None and plan.model.get("sha256") != load(self._teacher).sha256:
            raise InputError(
                f"{where}: the plan was made for another model than the teacher: the sha256 of the "
                "file differs"
            )
        return plan

    def _account(self, tuned: Distilled, teacher: str) -> None:
        """Fill in what the report tells, and what a plan has to hold."""
        course = tuned.course
        self.tuning = tuning_of(tuned, teacher)
        self.notes = tuned.notes
        self.plan = {
            "rate": course.rate,
            "steps": tuned.steps,
            "best": course.best,
            "needs": [name for name, value in self._given() if value is not None],
        }

    def _given(self) -> Iterator[tuple[str, Any]]:
        """Options that may be objects of Python, which no plan file can hold."""
        yield from (("teacher", self._teacher), ("labels", self._labels))

    def _require_planned(self) -> None:
        """Require what the run that is repeated was given.

        Raises:
            InputError: naming what the plan does not hold.
        """
        needed = (self._to_repeat or {}).get("needs", ())
        for name, value in self._given():
            if name in needed and value is None:
                raise InputError(
                    f"the plan was made with the option {name} as an object of Python, which no "
                    "plan can hold; give it as a path"
                )

    def _checked(self, options: Mapping[str, Any]) -> PruneOptions:
        """Options that pruning has as well, checked before anything runs.

        Raises:
            InputError: naming the option that cannot be used.
        """
        runtime = self.context.runtime
        named = {"providers": runtime.providers, "threads": runtime.threads}
        return resolve_options({**options, "seed": self.context.seed, **named}, calibrated=True)


def _require_same_interface(model: ir.Model, teacher: ir.Model, name: str) -> None:
    """Require that two models take the same inputs and give the same outputs.

    Raises:
        InputError: naming the first that differs.
    """
    for kind, tell in (("inputs", _inputs), ("outputs", _outputs)):
        own, others = tell(model), tell(teacher)
        if own.keys() != others.keys():
            raise InputError(
                f"{name} has the {kind} {', '.join(others)}, the model {', '.join(own)}; a teacher "
                "has the same inputs and outputs"
            )
        for value, (dtype, shape) in own.items():
            if dtype != others[value][0] or not _may_be_equal(shape, others[value][1]):
                raise InputError(
                    f"{name} has {value} as {_described(*others[value])}, the model as "
                    f"{_described(dtype, shape)}; a teacher has the same inputs and outputs"
                )


_Shape = tuple["int | None", ...]


def _inputs(model: ir.Model) -> dict[str, tuple[str, _Shape | None]]:
    return _declared(v for v in model.graph.inputs if v.name not in model.graph.initializers)


def _outputs(model: ir.Model) -> dict[str, tuple[str, _Shape | None]]:
    return _declared(model.graph.outputs)


def _declared(values: Iterable[ir.Value]) -> dict[str, tuple[str, _Shape | None]]:
    """Types and shapes by name; None for what is open."""
    return {
        value.name or "": (
            value.dtype.name.lower() if value.dtype is not None else str(value.type),
            None
            if value.shape is None
            else tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape),
        )
        for value in values
    }


def _may_be_equal(first: _Shape | None, second: _Shape | None) -> bool:
    """Whether two declared shapes allow the same arrays."""
    if first is None or second is None:
        return True
    return len(first) == len(second) and all(
        None in pair or pair[0] == pair[1] for pair in zip(first, second, strict=True)
    )


def _described(dtype: str, shape: _Shape | None) -> str:
    extents = ["?" if extent is None else str(extent) for extent in shape or ()]
    return f"{dtype} [{', '.join(extents)}]" if shape is not None else dtype
