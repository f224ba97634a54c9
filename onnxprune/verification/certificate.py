"""The certificate: the smaller model computes exactly what the masked one does.

The *masked* model is the original graph at full size with the removed slices of every cut tensor at
zero and the compensation already in; the *sliced* model is the same, physically smaller. Both run
on the same inputs in onnxruntime, at two batch sizes where the batch is free, and every output (or
what a Sigmoid makes it of) has to agree. This proves the surgery for any model, criterion and
weights, without data or labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import Execution
from onnxprune.model.outputs import output_producer
from onnxprune.model.runtime import Runtime
from onnxprune.verification.comparison import largest_difference


@dataclass(frozen=True)
class Probed:
    """What a model makes of some feeds, run exactly as written; one mapping for each.

    Attributes:
        outputs: its outputs.
        compared: the same with the input of a Sigmoid in place of its output.
    """

    outputs: list[dict[str, Any]]
    compared: list[dict[str, Any]]


def probe(model: ir.Model, runtime: Runtime, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Probed:
    """Run a model without optimisations.

    Args:
        model: unchanged.
        runtime: how to run it.
        feeds: inputs.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model or a feed.
    """
    inputs = saturated_outputs(model)
    if not inputs:
        outputs = Execution(model, runtime, optimise=False).run_all(feeds)
        return Probed(outputs, outputs)
    watched = model.clone()
    given = {value.name for value in (*watched.graph.inputs, *watched.graph.outputs)}
    for node in watched.graph:
        wanted = set(inputs.values()) - given
        watched.graph.outputs.extend(one for one in node.outputs if one.name in wanted)
    runs = Execution(watched, runtime, optimise=False).run_all(feeds)
    names = [value.name or "" for value in model.graph.outputs]
    return Probed(
        [{name: run[name] for name in names} for run in runs],
        [{name: run.get(inputs.get(name, name), run[name]) for name in names} for run in runs],
    )


def saturated_outputs(model: ir.Model) -> dict[str, str]:
    """Outputs that a Sigmoid makes -> what it is given."""
    found = {}
    for value in model.graph.outputs:
        node = output_producer(value)
        if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is not None:
            found[value.name or ""] = node.inputs[0].name or ""
    return found


_TOLERANCE = 1e-4
_COARSE_TOLERANCE = 2e-2
_COARSE_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_QUANTISED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger"}
)


@dataclass(frozen=True)
class Certificate:
    """Outcome of comparing the sliced with the masked model.

    Attributes:
        error: largest difference relative to the output's largest value, see `probing`.
        tolerance: what it may be.
        runs: number of inputs compared.
        effect: the same measure between the original and the masked model: that the outputs
            react at all to what was removed.
    """

    error: float
    tolerance: float
    runs: int
    effect: float

    @property
    def holds(self) -> bool:
        """Whether the models agree."""
        return self.error <= self.tolerance


def certify(
    original: Sequence[Mapping[str, Any]],
    masked: Probed,
    sliced: Probed,
    tolerance: float,
) -> Certificate:
    """Compare what the models computed on the same inputs, run exactly as written.

    Args:
        original: outputs of the model that was given, one mapping for each input.
        masked: what the original computes with the removed part zero.
        sliced: what the result computes.
        tolerance: what the error may be.
    """
    error = max(map(largest_difference, masked.compared, sliced.compared), default=0.0)
    effect = max(map(largest_difference, original, masked.outputs), default=0.0)
    return Certificate(error, tolerance, len(original), effect)


def tolerance_for(model: ir.Model) -> float:
    """Relative tolerance: 1e-4, or 2e-2 for half precision and quantised graphs."""
    types = {value.dtype for value in model.graph.initializers.values()}
    quantised = any(node.op_type in _QUANTISED_OPS for node in model.graph)
    return _COARSE_TOLERANCE if quantised or types & _COARSE_TYPES else _TOLERANCE
