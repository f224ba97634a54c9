"""What a run came to, compared with the original and described."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.cost.extents import dynamic_extents
from onnxprune.cost.latency import measure_pair
from onnxprune.cost.padding import BLOCKS, padded_macs
from onnxprune.cost.shapes import CutCost
from onnxprune.cost.size import all_constants, stored_parameters, tensor_bytes
from onnxprune.model.execution import is_heavy
from onnxprune.model.inputs import input_specs
from onnxprune.model.load import convert
from onnxprune.model.size import loaded_bytes, model_bytes
from onnxprune.planning import plan_of
from onnxprune.progress import during
from onnxprune.report.accounts import accounts_of
from onnxprune.report.network import find_network
from onnxprune.report.provenance import provenance_of
from onnxprune.report.summary import Report, Sizes
from onnxprune.results import PruneResult
from onnxprune.verification.comparison import OutputComparison, compare_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxprune.analysis import Analysis
    from onnxprune.building import Built
    from onnxprune.calibration.samples import Samples
    from onnxprune.model.load import LoadedModel
    from onnxprune.options import Options
    from onnxprune.progress import Progress
    from onnxprune.verification.quality import Quality

__all__ = ["Outcome", "batch_of", "sizes_of"]

_COMPARED_BATCHES = 16


@dataclass(frozen=True)
class Outcome:
    """What a run came to, before it is described."""

    loaded: LoadedModel
    analysis: Analysis
    built: Built
    options: Options
    samples: Samples | None
    quality: Quality | None = None

    def finished(
        self, measure_latency: bool | None, started: float, progress: Progress[Any]
    ) -> PruneResult:
        """Compare with the original and describe."""
        analysis, built, runtime = self.analysis, self.built, self.options.runtime
        # what `apply` is to do again, which need not be what was asked
        done = replace(self.options, compensate=built.compensate)
        cut = built.analysis or analysis
        plan = plan_of(self.loaded, cut, built.removal, done, built.stages)
        outputs: list[OutputComparison] = []
        if self.samples is not None:
            outputs = compare_outputs(
                analysis.model,
                built.model,
                self.samples,
                runtime,
                batches=_COMPARED_BATCHES,
                progress=progress,
            )
        latency = built.latency
        wanted = measure_latency or (measure_latency is None and not is_heavy(analysis.model))
        if latency is None and wanted:
            feed = analysis.coupling.facts.first.feed
            work = partial(measure_pair, analysis.model, built.model, feed, runtime)
            latency = during(progress, "measuring latency", work)
        report = Report(
            original=sizes_of(analysis, (), loaded_bytes(self.loaded)),
            result=_result_sizes(cut, built),
            batch=batch_of(analysis),
            certificate=built.certificate,
            outputs=tuple(outputs),
            latency=latency,
            padding=_padding(cut, built.removal.dead()),
            widths={one.id: (one.size, one.size - len(one.removed)) for one in plan.groups},
            inexact=tuple(one.id for one in plan.groups if one.inexact),
            blocks=cut.altered,
            depths=dict(built.depths),
            refused=cut.refused,
            dropped=dict(built.dropped),
            repairs=built.repairs,
            allocation=built.allocation,
            trials=dict(built.trials),
            quality=self.quality,
            note=built.note,
            seconds=time.perf_counter() - started,
            network=find_network(
                cut.model.graph,
                cut.coupling,
                cut.groups,
                cut.refused,
                built.removal.dead(),
            ),
            groups=accounts_of(
                cut.groups,
                {one.id: len(one.removed) for one in plan.groups},
                built.ranked,
            ),
            provenance=provenance_of(
                self.loaded.path, self.loaded.sha256, plan.options, self.options.runtime
            ),
        )
        model = convert(built.model, self.loaded.kind)
        return PruneResult(model, plan, report, built.model, self.loaded.path)


def _padding(analysis: Analysis, dead: Sequence[int]) -> dict[int, float]:
    found = {}
    for block in BLOCKS:
        plain, padded = padded_macs(analysis.model.graph, analysis.coupling, dead, block)
        if plain:
            found[block] = padded / plain
    return found


def sizes_of(analysis: Analysis, dead: Sequence[int], size: int) -> Sizes:
    """Costs without the classes `dead`; `size` is that of the file."""
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


def _result_sizes(cut: Analysis, built: Built) -> Sizes:
    """Costs of a result: what is stored is counted in it, the rest follows from the cut."""
    counted = sizes_of(cut, built.removal.dead(), model_bytes(built.model))
    graph = built.model.graph
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
