"""What the functions of the API return."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.compensation.least_squares import NOTHING_LOST, LayerFit
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.figures import BLOCKS, batch_rows, dynamic_extents, padded_macs
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.cost.memory import all_constants, stored_parameters, tensor_bytes
from onnxprune.coupling.analysis import Analysis
from onnxprune.errors import InputError
from onnxprune.importance.gaps import estimated_readers
from onnxprune.model.inputs import input_specs, listed_initializers, resized_batch
from onnxprune.model.load import LoadedModel, convert, loaded_bytes
from onnxprune.model.save import check_writable, model_bytes, save, write_text_atomic
from onnxprune.model.tensors import extents
from onnxprune.progress import during
from onnxprune.pruning.build import CutModel
from onnxprune.pruning.method import Method
from onnxprune.pruning.plan import Plan, plan_of
from onnxprune.pruning.run import PrunedModel
from onnxprune.report.accounts import accounts_of, provenance_of, tuning_of
from onnxprune.report.network.network import find_network
from onnxprune.report.network.picture import network_svg
from onnxprune.report.records import (
    ComparisonRecord,
    InspectionRecord,
    PipelineRecord,
    PruneRecord,
    Sizes,
    StepReport,
)
from onnxprune.report.run_page import prune_page, run_page
from onnxprune.report.sections import left_out
from onnxprune.verification.comparison import OutputComparison, compare_outputs
from onnxprune.verification.quality import Quality

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Report(PruneRecord):
    """What a run did.

    Attributes:
        original: costs before.
        result: costs after.
        batch: rows of the feed that `macs` and `latency` refer to.
        certificate: the proof of the surgery.
        outputs: outputs of result and original compared on the calibration samples; empty without.
        latency: measured in alternation; None when it was not.
        padding: channels that a kernel computes together -> MACs of the cut convolutions with
            widths rounded up to whole blocks over those without; empty where none was cut.
        widths: per group name its size before and after.
        groups: every group of the model with its error curve, uncut groups too.
        inexact: names of cut groups whose normalisation statistics run over fewer entries now.
        refused: axes that cannot be cut.
        dropped: groups that were not cut because no valid result could be built, with the reason.
        repairs: least-squares fit of every layer that was to be re-fitted; a layer that was cut
            and could not be says why.
        unfolded: readers of removed units that no weights or biases make up for, with the reason.
        allocation: name of the way the removal was distributed over the groups.
        trials: divergence of the outputs for each way that was tried.
        blocks: sums that lost their residual branch.
        depths: number of removed blocks -> divergence of the outputs, for each number tried.
        estimated: readers whose part in the error curves is an estimate, with the reason; empty for
            criteria without error curves.
        inlined: for tensors of local functions that name groups or were cut, what they are in the
            file.
        unmeasured: outputs that no allocation is judged by, as they are not of floating point.
        cut_inputs: initializers that are graph inputs too and were cut -> their shape before and
            after, None where nothing reads them any more and they are gone.
        quality: of original and result on samples, when labels, a metric or a limit were given.
        note: what was done differently from what was asked, empty for nothing.
        missed: what of a limit or target was not met, with best effort; empty for nothing.
        seconds: duration of the run.
        provenance: versions, machine, options and the original's digest.
        network: the layers and their widths, for the picture; not part of the JSON.
        warnings: what may make the result worthless, each with the next step.
        tuning: how the weights were fine-tuned; None where they were not.
    """

    def to_html(self, *, command: Sequence[str] = (), model_file: str | Path | None = None) -> str:
        """Return one self-contained HTML page.

        Args:
            command: the words of the command line that made it; empty for none.
            model_file: where the result was saved; its digest is shown then.

        Raises:
            OSError: when that file cannot be read.
        """
        return prune_page(self, command=command, model_file=model_file)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(replace(self, network=None))
        del data["network"]
        data["refused"] = [axis.to_dict() for axis in self.refused]
        data["certificate"]["holds"] = self.certificate.holds
        data["latency"] = None if self.latency is None else self.latency.to_dict()
        data["quality"] = None if self.quality is None else self.quality.to_dict()
        data["tuning"] = None if self.tuning is None else self.tuning.to_dict()
        return data


@dataclass(frozen=True)
class PruneResult(PipelineRecord):
    """The result of a run: of one pruning, or of several passes.

    Attributes:
        model: after the last pass, of the kind that was given (an ir.Model for a path).
        plan: from which the run can be repeated.
        original: costs of the model that was given.
        steps: one report for each pass.
        provenance: versions, machine, options and the original's digest.
    """

    model: onnx.ModelProto | ir.Model | gs.Graph
    plan: Plan
    _ir: ir.Model
    _source: Path | None = None

    @property
    def report(self) -> Report:
        """Numbers before and after, certificate, refusals; of several passes the last that prunes.

        Raises:
            AttributeError: when no pass prunes.
        """
        reports = [step.report for step in self.steps if isinstance(step.report, Report)]
        if not reports:
            raise AttributeError("no pass of this run prunes; see its steps")
        return reports[-1]

    def save(self, path: str | Path) -> None:
        """Write the model atomically, and beside it the files that belong to it.

        A file of the suffix `.tokens.json` is `small.tokens.json` beside `small.onnx`.

        Raises:
            InputError: when a path is that of an input, or cannot be written; then nothing is.
        """
        beside = self.files_beside(path)
        for file in beside:
            for protected in self._read():
                check_writable(file, protected)
        written: list[Path] = []
        try:
            for file, text in beside.items():
                write_text_atomic(file, text)
                written.append(file)
            save(self._ir, path, protect=self._source)
        except BaseException:
            for file in written:
                with contextlib.suppress(OSError):
                    os.unlink(file)
            raise

    def files_beside(self, path: str | Path) -> dict[Path, str]:
        """Files that belong beside the model, with their texts.

        Args:
            path: of the model.

        Raises:
            InputError: for a suffix that is none.
        """
        files: dict[Path, str] = {}
        for number, step in enumerate(self.steps, 1):
            for suffix, text in step.files.items():
                if os.path.basename(suffix) != suffix:
                    raise InputError(f"{step.name}: {suffix!r} is no ending of a file name")
                file = Path(path).with_name(f"{Path(path).stem}{suffix}")
                if file in files:
                    file = file.with_name(f"{Path(path).stem}.{number}{suffix}")
                files[file] = text
        return files

    def _read(self) -> Iterator[Path]:
        """Files that the run may have read."""
        if self._source is not None:
            yield self._source
        for step in self.steps:
            values = step.options.values()
            yield from (Path(value) for value in values if isinstance(value, (str, Path)))

    def to_html(self, *, command: Sequence[str] = (), model_file: str | Path | None = None) -> str:
        """Return one self-contained HTML page.

        Args:
            command: the words of the command line that made it; empty for none.
            model_file: where the result was saved; its digest is shown then.

        Raises:
            OSError: when that file cannot be read.
        """
        if not self.plan.steps:
            return self.report.to_html(command=command, model_file=model_file)
        try:
            passes, no_passes = self.plan.to_dict()["steps"], ""
        except InputError as error:
            passes, no_passes = [], str(error)
        beside = self.files_beside(model_file) if model_file is not None else ()
        return run_page(
            self,
            passes,
            no_passes,
            command=command,
            model_file=model_file,
            beside=list(map(str, beside)),
        )

    def save_report(
        self, path: str | Path, *, command: Sequence[str] = (), model_file: str | Path | None = None
    ) -> None:
        """Write the page as one self-contained HTML file, atomically.

        Args:
            path: the file to write.
            command: the words of the command line that made it; empty for none.
            model_file: where the model was saved; its digest is shown then.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        check_writable(path, self._source)
        write_text_atomic(path, self.to_html(command=command, model_file=model_file))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"original": vars(self.original), "steps": [step.to_dict() for step in self.steps]}


PipelineResult = PruneResult
"""Public name of the result of several passes."""


@dataclass(frozen=True)
class Inspection(InspectionRecord):
    """What `inspect` returns.

    Attributes:
        sizes: what the model costs.
        batch: rows of the feed that `sizes.macs` refers to.
        nodes: cost of every node that multiplies or reads parameters.
        groups: groups of removable units.
        refused: axes that cannot be cut, and why.
        network: the layers and how they are connected.
    """

    def save_svg(self, path: str | Path, title: str = "") -> None:
        """Draw the network as an SVG file, written atomically.

        Args:
            path: the file to write.
            title: above the picture.

        Raises:
            InputError: when the path cannot be written, or pygraphviz is not installed.
        """
        write_text_atomic(path, network_svg(self.network, title=title))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "sizes": vars(self.sizes),
            "batch": self.batch,
            "nodes": [vars(node) for node in self.nodes],
            "groups": [
                {
                    "id": group.name,
                    "kind": group.kind,
                    "size": group.size,
                    "tensors": sorted({owned.tensor for owned in group.owned}),
                    "consumers": list(dict.fromkeys(r.consumer.node for r in group.readings)),
                }
                for group in self.groups
            ],
            "refused": [axis.to_dict() for axis in self.refused],
        }


@dataclass(frozen=True)
class Comparison(ComparisonRecord):
    """What `verify` returns.

    Attributes:
        outputs: every output of the two models compared.
        original: costs of the first model.
        pruned: costs of the second.
        quality: of both, where labels or a metric were given.
        warnings: what is odd about the samples, each with the next step.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "outputs": [output.to_dict() for output in self.outputs],
            "original": vars(self.original),
            "pruned": vars(self.pruned),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "warnings": list(self.warnings),
        }


_COMPARED_BATCHES = 16
_LISTED = 5  # names in a warning


def compared(
    reference: ir.Model, result: ir.Model, context: RunContext
) -> tuple[OutputComparison, ...]:
    """Compare the outputs of two models on the first samples; empty without samples.

    Args:
        reference: the model whose outputs are to be kept.
        result: a model with the same interface.
        context: samples, runtime and progress callback.
    """
    if context.samples is None:
        return ()
    outputs = compare_outputs(
        reference,
        result,
        context.samples,
        context.runtime,
        batches=_COMPARED_BATCHES,
        progress=context.progress,
    )
    return tuple(outputs)


def describe(
    loaded: LoadedModel, pruned: PrunedModel, quality: Quality | None = None
) -> tuple[Plan, Report]:
    """Plan and report of a pruning.

    Args:
        loaded: the original.
        pruned: the smaller model.
        quality: of original and result, where it was measured.

    Returns:
        The plan, and the report without `outputs`, `seconds` and, where latency was no target,
        `latency`.
    """
    original, analysis, cut = pruned.original, pruned.analysis, pruned.cut
    removed = cut.removal.removed_units()
    # what `apply` is to repeat, which need not be what was asked
    options = replace(pruned.method.options, target=pruned.target)
    course = pruned.tuned.course if pruned.tuned is not None else None
    tuning = {} if course is None else {"rate": course.rate, "best": course.best}
    plan = plan_of(loaded, analysis, cut.removal, options, pruned.stages, tuning)
    plan = replace(plan, components=cut.components)
    cost = CutCost(analysis.model.graph, analysis.coupling)
    whole = cost if original is analysis else CutCost(original.model.graph, original.coupling)
    before = _sizes(original, whole, (), original.file_bytes or loaded_bytes(loaded))
    report = Report(
        original=before,
        result=_result_sizes(analysis, cut, cost),
        batch=batch_of(original),
        certificate=cut.certificate,
        outputs=(),
        latency=pruned.latency,
        padding=_padding(analysis, removed),
        widths={group.id: (group.size, group.size - len(group.removed)) for group in plan.groups},
        inexact=tuple(group.id for group in plan.groups if group.inexact),
        blocks=analysis.altered,
        depths=dict(pruned.depths),
        refused=analysis.refused,
        dropped=dict(pruned.dropped),
        repairs=cut.fits,
        unfolded=dict(cut.unfolded),
        estimated=_estimated(pruned),
        unmeasured=_unmeasured(original.model) if pruned.trials else (),
        allocation=pruned.allocation,
        trials=dict(pruned.trials),
        quality=quality,
        note=pruned.note,
        seconds=0.0,
        cut_inputs=_cut_inputs(original.model, cut.model),
        inlined=_inlined(loaded, plan),
        network=find_network(
            analysis.model.graph, analysis.coupling, analysis.groups, analysis.refused, removed
        ),
        groups=accounts_of(
            analysis.groups, {group.id: len(group.removed) for group in plan.groups}, pruned.ranked
        ),
        warnings=(
            *pruned.warnings,
            *analysis.warnings,
            *_unsolved(pruned.method, cut.fits),
            *_unjudged(pruned),
            *_narrow(plan),
        ),
        provenance=provenance_of(loaded.path, loaded.sha256, plan.options, options.runtime),
        tuning=tuning_of(pruned.tuned) if pruned.tuned is not None else None,
    )
    return plan, report


def build_result(
    loaded: LoadedModel,
    pruned: PrunedModel,
    context: RunContext,
    quality: Quality | None,
    started: float,
) -> PruneResult:
    """Compare a pruned model with the original and assemble the result.

    Args:
        loaded: the original.
        pruned: the smaller model.
        context: samples to compare outputs on, runtime, progress callback, and whether latency is
            measured.
        quality: of original and result, where it was measured.
        started: when the run began, by `time.perf_counter`.
    """
    plan, report = describe(loaded, pruned, quality)
    original, model = pruned.original, pruned.cut.model
    latency = report.latency
    if latency is None and context.measures_latency(original.model):
        traced = original.coupling.facts.first.feed
        feed = resized_batch(input_specs(original.original), traced, context.runtime.batch)
        work = partial(measure_pair, original.model, model, feed, context.runtime)
        latency = during(context.progress, "measuring latency", work)
    report = replace(
        report,
        outputs=compared(original.model, model, context),
        latency=latency,
        seconds=time.perf_counter() - started,
    )
    step = StepReport(
        "prune", {}, report.seconds, True, report.result, report.outputs, latency, report=report
    )
    return PruneResult(
        original=report.original,
        steps=(step,),
        provenance=provenance_of(loaded.path, loaded.sha256, plan.options, context.runtime),
        model=convert(model, loaded.kind),
        plan=plan,
        _ir=model,
        _source=loaded.path,
    )


def _narrow(plan: Plan) -> tuple[str, ...]:
    """A warning where groups are left with a single unit."""
    names = [group.id for group in plan.groups if group.size - len(group.removed) == 1]
    if not names:
        return ()
    listed = ", ".join(names[:_LISTED]) + (" and others" if len(names) > _LISTED else "")
    return (
        f"one unit is left of {listed}: next to nothing can pass there; if that is not meant, keep "
        f"it whole with --exclude {names[0]!r}, or give samples that make use of it",
    )


def _estimated(pruned: PrunedModel) -> dict[str, str]:
    """Readers whose error curves are estimates."""
    if not pruned.method.criterion.measures_curves:
        return {}
    return estimated_readers(pruned.analysis, [ranked.group for ranked in pruned.ranked])


def _unmeasured(model: ir.Model) -> tuple[str, ...]:
    """Outputs that divergence does not look at: integers, text, sequences."""
    floats = {
        value.name
        for value in model.graph.outputs
        if value.dtype is not None and value.dtype.is_floating_point()
    }
    names = (value.name or "" for value in model.graph.outputs)
    return tuple(name for name in names if name not in floats)


def _unjudged(pruned: PrunedModel) -> tuple[str, ...]:
    """A warning where allocations were compared and no output could tell them apart."""
    outputs = pruned.original.model.graph.outputs
    if not pruned.trials or len(_unmeasured(pruned.original.model)) < len(outputs):
        return ()
    return (
        "no output of the model is of floating point, so that allocations could not be told apart: "
        "prune the model with its scores as an output, or judge the result with --labels",
    )


def _unsolved(method: Method, fits: Sequence[LayerFit]) -> tuple[str, ...]:
    """A warning where least squares was to re-fit layers and did not re-fit any."""
    lost = [fit for fit in fits if fit.cut and fit.reason != NOTHING_LOST]
    if not method.compensation.refits_layers or not lost or any(fit.solved for fit in fits):
        return ()
    reasons = left_out(lost)
    tried = any(not fit.reason for fit in lost)
    layers = "the only layer" if len(lost) == 1 else f"any of the {len(lost)} layers"
    return (
        f"least squares did not re-fit {layers} that lost something ({reasons[0].reason}"
        f"{', and other reasons' if len(reasons) > 1 else ''}): only means make up for what was "
        f"removed; {'give more samples, ' if tried else ''}remove less, or fine-tune the result",
    )


def _inlined(loaded: LoadedModel, plan: Plan) -> dict[str, str]:
    """Constants of local functions that a plan names, and what they are in the file."""
    axes = [group.id for group in plan.groups] + [refused.axis for refused in plan.refused]
    names = {*plan.initializers, *(axis.rpartition("[")[0] for axis in axes)}
    return {name: str(origin) for name, origin in loaded.inlined.items() if name in names}


def _cut_inputs(
    original: ir.Model, result: ir.Model
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Initializers that are inputs too and cannot be given values of the old shape any more."""
    left = listed_initializers(result)
    shapes = {}
    for name, value in listed_initializers(original).items():
        before, after = _shape(value), _shape(left[name]) if name in left else None
        if before != after:
            shapes[name] = before, after
    return shapes


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _padding(analysis: Analysis, dead: Sequence[int]) -> dict[int, float]:
    found = {}
    for block in BLOCKS:
        plain, padded = padded_macs(analysis.model.graph, analysis.coupling, dead, block)
        if plain:
            found[block] = padded / plain
    return found


def sizes_of(analysis: Analysis, dead: Sequence[int], size: int) -> Sizes:
    """Costs without the units `dead`; `size` is that of the file."""
    return _sizes(analysis, CutCost(analysis.model.graph, analysis.coupling), dead, size)


def _sizes(analysis: Analysis, costs: CutCost, dead: Sequence[int], size: int) -> Sizes:
    cost = costs.after(dead)
    feed = analysis.coupling.facts.first.feed
    return Sizes(
        params=int(cost["params"]),
        macs=int(cost["macs"]),
        bytes=size,
        weights=int(cost["weights"]),
        activations=int(cost["activations"]),
        memory=int(cost["memory"]),
        extents=dynamic_extents(input_specs(analysis.model), feed),
    )


def _result_sizes(analysis: Analysis, cut: CutModel, cost: CutCost) -> Sizes:
    """Costs of a smaller model: what is stored is counted in it, the rest follows from the cut."""
    counted = _sizes(analysis, cost, cut.removal.removed_units(), model_bytes(cut.model))
    graph = cut.model.graph
    weights = sum(
        tensor_bytes(extents(constant), ir.DataType(constant.dtype))
        for constant in all_constants(graph)
    )
    return replace(
        counted,
        params=stored_parameters(graph),
        weights=weights,
        memory=weights + counted.activations,
    )


def batch_of(analysis: Analysis) -> int:
    """Samples of the traced feed."""
    return batch_rows(input_specs(analysis.model), analysis.coupling.facts.first.feed)
