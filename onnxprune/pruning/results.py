"""What the functions of the API return."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.calibration.context import RunContext
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.figures import BLOCKS, dynamic_extents, padded_macs
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.cost.memory import all_constants, stored_parameters, tensor_bytes
from onnxprune.coupling.analysis import Analysis
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import LoadedModel, convert, loaded_bytes
from onnxprune.model.save import check_writable, model_bytes, save, write_text_atomic
from onnxprune.progress import during
from onnxprune.pruning.build import CutModel
from onnxprune.pruning.plan import Plan, plan_of
from onnxprune.pruning.run import PrunedModel
from onnxprune.report.accounts import accounts_of, provenance_of
from onnxprune.report.network.network import find_network
from onnxprune.report.network.picture import network_svg
from onnxprune.report.records import ComparisonRecord, InspectionRecord, PruneRecord, Sizes
from onnxprune.report.run_page import prune_page
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
        groups: every group of the model with its error curve, those left whole too.
        inexact: names of cut groups whose normalisation statistics run over fewer entries now.
        refused: axes that cannot be cut.
        dropped: groups left whole because the graph could not follow, with the reason.
        repairs: what became of the layers that were to be solved anew.
        allocation: name of the way the removal was spread over the groups.
        trials: divergence of the outputs for each way that was tried.
        blocks: sums that lost their residual branch.
        depths: number of blocks gone -> divergence of the outputs, for each number that was tried.
        quality: of original and result on samples, when labels, a metric or a limit were given.
        note: what was done differently from what was asked, empty for nothing.
        seconds: duration of the run.
        provenance: versions, machine, options and the original's digest.
        network: the layers and their widths, for the picture; not part of the JSON.
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
        data["quality"] = None if self.quality is None else self.quality.to_dict()
        return data


@dataclass(frozen=True)
class PruneResult:
    """What `prune` and `apply` return.

    Attributes:
        model: the smaller model, of the kind that was given (an ir.Model for a path).
        plan: what was removed.
        report: numbers before and after, certificate, refusals.
    """

    model: onnx.ModelProto | ir.Model | gs.Graph
    plan: Plan
    report: Report
    _ir: ir.Model
    _source: Path | None = None

    def save(self, path: str | Path) -> None:
        """Write the smaller model atomically.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        save(self._ir, path, protect=self._source)

    def save_report(
        self,
        path: str | Path,
        *,
        command: Sequence[str] = (),
        model_file: str | Path | None = None,
    ) -> None:
        """Write the report as one self-contained HTML file, atomically.

        Args:
            path: the file to write.
            command: the words of the command line that made it; empty for none.
            model_file: where the model was saved; its digest is shown then.

        Raises:
            InputError: when the path is that of the input, or cannot be written.
        """
        check_writable(path, self._source)
        page = self.report.to_html(command=command, model_file=model_file)
        write_text_atomic(path, page)


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
    """

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "outputs": [one.to_dict() for one in self.outputs],
            "original": vars(self.original),
            "pruned": vars(self.pruned),
        }


_COMPARED_BATCHES = 16


def build_result(
    loaded: LoadedModel,
    pruned: PrunedModel,
    context: RunContext,
    quality: Quality | None,
    measure_latency: bool | None,
    started: float,
) -> PruneResult:
    """Compare a smaller model with the original and assemble the result.

    Args:
        loaded: the original.
        pruned: the smaller model.
        context: samples to compare on, runtime and progress callback.
        quality: measured; None where it was not.
        measure_latency: as for `prune`.
        started: when the run began, by `time.perf_counter`.
    """
    original, analysis, cut = pruned.original, pruned.analysis, pruned.cut
    removed = cut.removal.removed_units()
    # what `apply` is to repeat, which need not be what was asked
    options = replace(pruned.method.options, target=pruned.target)
    plan = plan_of(loaded, analysis, cut.removal, options, pruned.stages)
    outputs: list[OutputComparison] = []
    if context.samples is not None:
        outputs = compare_outputs(
            original.model,
            cut.model,
            context.samples,
            context.runtime,
            batches=_COMPARED_BATCHES,
            progress=context.progress,
        )
    latency = pruned.latency
    wanted = measure_latency or (measure_latency is None and not is_heavy(original.model))
    if latency is None and wanted:
        feed = original.coupling.facts.first.feed
        work = partial(measure_pair, original.model, cut.model, feed, context.runtime)
        latency = during(context.progress, "measuring latency", work)
    report = Report(
        original=sizes_of(original, (), loaded_bytes(loaded)),
        result=_result_sizes(analysis, cut),
        batch=batch_of(original),
        certificate=cut.certificate,
        outputs=tuple(outputs),
        latency=latency,
        padding=_padding(analysis, removed),
        widths={group.id: (group.size, group.size - len(group.removed)) for group in plan.groups},
        inexact=tuple(group.id for group in plan.groups if group.inexact),
        blocks=analysis.altered,
        depths=dict(pruned.depths),
        refused=analysis.refused,
        dropped=dict(pruned.dropped),
        repairs=cut.fits,
        allocation=pruned.allocation,
        trials=dict(pruned.trials),
        quality=quality,
        note=pruned.note,
        seconds=time.perf_counter() - started,
        network=find_network(
            analysis.model.graph, analysis.coupling, analysis.groups, analysis.refused, removed
        ),
        groups=accounts_of(
            analysis.groups,
            {group.id: len(group.removed) for group in plan.groups},
            pruned.ranked,
        ),
        provenance=provenance_of(loaded.path, loaded.sha256, plan.options, context.runtime),
    )
    model = convert(cut.model, loaded.kind)
    return PruneResult(model, plan, report, cut.model, loaded.path)


def _padding(analysis: Analysis, dead: Sequence[int]) -> dict[int, float]:
    found = {}
    for block in BLOCKS:
        plain, padded = padded_macs(analysis.model.graph, analysis.coupling, dead, block)
        if plain:
            found[block] = padded / plain
    return found


def sizes_of(analysis: Analysis, dead: Sequence[int], size: int) -> Sizes:
    """Costs without the units `dead`; `size` is that of the file."""
    cost = CutCost(analysis.model.graph, analysis.coupling).after(dead)
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


def _result_sizes(analysis: Analysis, cut: CutModel) -> Sizes:
    """Costs of a smaller model: what is stored is counted in it, the rest follows from the cut."""
    counted = sizes_of(analysis, cut.removal.removed_units(), model_bytes(cut.model))
    graph = cut.model.graph
    weights = sum(
        tensor_bytes(tuple(one.shape.numpy()), ir.DataType(one.dtype))
        for one in all_constants(graph)
    )
    return replace(
        counted,
        params=stored_parameters(graph),
        weights=weights,
        memory=weights + counted.activations,
    )


def batch_of(analysis: Analysis) -> int:
    """Rows of the first input of the traced feed."""
    feed = analysis.coupling.facts.first.feed
    first = next(iter(feed.values()), np.zeros(1))
    return int(first.shape[0]) if first.ndim else 1
