"""How far residual blocks that go take a model towards its target.

With w the cost of the whole model, f the fraction of it that is to remain and b the cost of a
block, blocks are ranked by what they cost in divergence for::

    sum over the kinds of the target of  b / ((1 - f) w)

which is 1 for what has to go. Latency is first estimated, from one profile of the whole model, and
measured where the estimate is near what is asked for, or below.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.cost.latency.measure import measure_pair
from onnxprune.cost.latency.profile import profile_model
from onnxprune.cost.macs import node_macs
from onnxprune.cost.size import stored_parameters
from onnxprune.coupling.step import node_id
from onnxprune.model.observe import Facts
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.blocks.residual import ResidualBlock

TARGET_KINDS = ("macs", "params", "latency")
"""What blocks can be removed for."""

# an estimate may be wrong by so much before a measurement is left out
_NEAR = 1.15
_LEAST = 1e-6


@dataclass(frozen=True)
class BlockTarget:
    """What is to remain of a model, and what its nodes cost.

    Attributes:
        model: the whole.
        facts: shapes at the traced size.
        shares: kind -> fraction of the model that is to remain: macs, params, latency.
        runtime: providers and threads, the user's.
        parameters: of the model.
        macs: by node id.
        seconds: by node id, from a profile; empty unless latency is asked for.
    """

    model: ir.Model
    facts: Facts
    shares: Mapping[str, float]
    runtime: Runtime
    parameters: int
    macs: Mapping[str, float]
    seconds: Mapping[str, float]

    def weights(self, blocks: Sequence[ResidualBlock]) -> dict[str, float]:
        """What each block saves of what has to go, by name."""
        whole = {
            "macs": sum(self.macs.values()),
            "params": float(self.parameters),
            "latency": sum(self.seconds.values()),
        }
        seconds = {
            one.name: sum(self.seconds.get(node, 0.0) for node in one.nodes) for one in blocks
        }
        return saved_shares(blocks, self.shares, whole, seconds)

    def remaining(self, gone: Sequence[ResidualBlock], smaller: ir.Model) -> dict[str, float]:
        """What is left, by kind; latency is measured where all may be met, else estimated.

        Args:
            gone: the blocks that went.
            smaller: the model without them.
        """
        nodes = {node for one in gone for node in one.nodes}
        every = {
            "macs": _rest(self.macs, nodes),
            "params": stored_parameters(smaller.graph) / max(self.parameters, 1),
            "latency": _rest(self.seconds, nodes),
        }
        left = {kind: every[kind] for kind in self.shares}
        if "latency" in left and self.is_met({**left, "latency": left["latency"] / _NEAR}):
            pair = measure_pair(self.model, smaller, self.facts.first.feed, self.runtime)
            left["latency"] = pair.ratio
        return left

    def is_met(self, left: Mapping[str, float]) -> bool:
        """Whether what is left is as little as was asked for."""
        return all(left[kind] <= share for kind, share in self.shares.items())

    def counts_hold(self, smaller: ir.Model) -> bool:
        """Whether a result has no more parameters than was asked for: a repair may add biases."""
        asked = self.shares.get("params")
        return asked is None or stored_parameters(smaller.graph) <= asked * self.parameters


def block_target(
    model: ir.Model, facts: Facts, shares: Mapping[str, float], runtime: Runtime
) -> BlockTarget:
    """Count, and for a latency target time, the nodes of a model.

    Args:
        model: the whole; unchanged.
        facts: shapes at the traced size.
        shares: kind -> fraction that is to remain.
        runtime: providers and threads.
    """
    shapes = facts.first.shapes
    names = [node_id(node) for node in model.graph]
    macs = (float(node_macs(node, shapes.__getitem__)) for node in model.graph)
    seconds: dict[str, float] = {}
    if "latency" in shares:
        profile = profile_model(model, facts.first.feed, shapes, runtime)
        times = ((one + profile.call if one else 0.0) for one in profile.kernels)
        seconds = dict(zip(names, times, strict=True))
    return BlockTarget(
        model,
        facts,
        shares,
        runtime,
        stored_parameters(model.graph),
        dict(zip(names, macs, strict=True)),
        seconds,
    )


def saved_shares(
    blocks: Sequence[ResidualBlock],
    shares: Mapping[str, float],
    whole: Mapping[str, float],
    seconds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """What each block saves of what has to go, by name; 1 for all where nothing has to.

    Args:
        blocks: the blocks.
        shares: kind -> fraction that is to remain; kinds that are not counted by node, and latency
            without `seconds`, count as multiplications.
        whole: kind -> cost of the whole model.
        seconds: by name of the block.
    """
    weights = dict.fromkeys((one.name for one in blocks), 0.0)
    for kind, share in shares.items():
        counted = {"params": "params", "size": "params"}.get(kind, "macs")
        costs = {
            one.name: float(one.parameters if counted == "params" else one.macs) for one in blocks
        }
        if kind == "latency" and seconds:
            counted, costs = kind, dict(seconds)
        excess = (1 - share) * whole.get(counted, 0.0)
        if excess > 0:
            weights = {name: weight + costs[name] / excess for name, weight in weights.items()}
    if not any(weights.values()):
        return dict.fromkeys(weights, 1.0)
    return {name: max(weight, _LEAST) for name, weight in weights.items()}


def _rest(costs: Mapping[str, float], gone: Collection[str]) -> float:
    """The part of a cost that is not that of some nodes."""
    total = sum(costs.values())
    return sum(cost for name, cost in costs.items() if name not in gone) / total if total else 0.0
