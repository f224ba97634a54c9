"""What residual branches give on samples: their mean, and how much they turn the stream.

    influence = 1 - mean over positions of cos(x, x + f(x))

Source: Men et al. 2024 (ShortGPT) for the influence of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import Execution
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.blocks.residual import ResidualBlock

_TINY = 1e-30


@dataclass(frozen=True)
class BranchStatistics:
    """What one branch gives.

    Attributes:
        mean: of each channel over samples and positions, float64 [channels].
        influence: 1 - cosine between the stream before and behind the addition, over channels.
    """

    mean: NDArray[np.float64]
    influence: float


def branch_statistics(
    model: ir.Model,
    blocks: Sequence[ResidualBlock],
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
) -> dict[str, BranchStatistics]:
    """Run a model on samples and look at its residual blocks.

    Args:
        model: unchanged.
        blocks: residual blocks of it.
        feeds: at least one.
        runtime: how to run it.

    Returns:
        statistics by the name of the block.
    """
    names = dict.fromkeys(n for one in blocks for n in (one.stream, one.branch, one.name))
    watched = model.clone()
    returned = {value.name for value in watched.graph.outputs}
    for node in watched.graph:
        more = [v for v in node.outputs if v.name in names and v.name not in returned]
        watched.graph.outputs.extend(more)
    execution = Execution(watched, runtime, arena=False)
    sums = {one.name: np.zeros(0) for one in blocks}
    turned = dict.fromkeys(sums, 0.0)
    rows = dict.fromkeys(sums, 0)
    for feed in feeds:
        outputs = execution.run(feed) | dict(feed)
        for one in blocks:
            before, branch, after = (
                np.moveaxis(outputs[name], one.axis, -1).reshape(-1, outputs[name].shape[one.axis])
                for name in (one.stream, one.branch, one.name)
            )
            total = branch.sum(axis=0, dtype=np.float64)
            sums[one.name] = total if not rows[one.name] else sums[one.name] + total
            turned[one.name] += float((1 - _cosines(before, after)).sum())
            rows[one.name] += len(branch)
    return {
        name: BranchStatistics(total / rows[name], turned[name] / rows[name])
        for name, total in sums.items()
    }


def _cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row of two arrays [rows, channels]; 1 for two rows of zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    dot = np.einsum("rc,rc->r", a, b)
    scale = np.sqrt(np.einsum("rc,rc->r", a, a) * np.einsum("rc,rc->r", b, b))
    return np.where(scale > _TINY, dot / np.maximum(scale, _TINY), 1.0)
