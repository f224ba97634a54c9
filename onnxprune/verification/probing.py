"""Running models to compare them: an output of a Sigmoid is compared by what the Sigmoid is given.

Where it saturates, a Sigmoid rounds small differences away, or leaves nothing but rounding: of the
1e-7 that a detector gives where there is nothing to detect, the last digit is a third.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.model.execution import Execution
from onnxprune.verification.divergence import maker_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.model.runtime import Runtime

__all__ = ["Probed", "probe", "saturated_outputs"]


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
        node = maker_of(value)
        if node is not None and node.op_type == "Sigmoid" and node.inputs[0] is not None:
            found[value.name or ""] = node.inputs[0].name or ""
    return found
