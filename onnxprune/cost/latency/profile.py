"""Which node of a model takes which part of its time, from one profile of the whole.

onnxruntime runs an optimised graph. A kernel of it is traced back to a node of the file by its
name, or, where a convolution was moved into the blocked layout, by the name of its output; what was
fused into it goes with it. Kernels that belong to no node (layout changes, patterns that became one
operator) are spread over the nodes that no kernel belongs to, by what these write.
"""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.cost.latency.probe import read_profile, run_often, typical
from onnxprune.model.runtime import Runtime
from onnxprune.model.session import open_session

_NAME = "onnxprune_node_"
_BODY = "onnxprune_body_"
_BLOCKED = "_nchwc"
_SECONDS = 0.6
_MOST = 300
_FUSED = 6
# More is no call but a machine that was busy with something else.
_LONGEST_CALL = 2e-6
_CONSTANT = ("Constant", "Identity")


@dataclass(frozen=True)
class Profile:
    """Where the time of a model goes.

    Attributes:
        kernels: seconds of the kernels of each node, in graph order.
        call: seconds that running a node costs besides its kernels, for each node that has any.
        total: seconds of one run.
    """

    kernels: tuple[float, ...]
    call: float
    total: float


def profile_model(
    model: ir.Model,
    feed: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
    runtime: Runtime,
) -> Profile:
    """Profile a model on one feed.

    Args:
        model: unchanged.
        feed: what it runs on.
        shapes: shape of every tensor on this feed.
        runtime: providers and threads.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model or the feed.
    """
    named = model.clone()
    for number, node in enumerate(named.graph):
        node.name = node_name(number)
    for number, node in enumerate(ir.traversal.RecursiveGraphIterator(named.graph)):
        if not (node.name or "").startswith(_NAME):
            node.name = f"{_BODY}{number}"
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = open_session(named, runtime, profile=str(Path(folder) / "profile"))
        runs = 1 + len(run_often(session, feed, _SECONDS, _MOST))
        events = read_profile(session.end_profiling())
    del session
    # what a body computes is part of the time of its node
    seconds = {
        event: typical(times)
        for event, times in events.items()
        if not event[0].startswith(_BODY) and len(times) <= runs
    }
    session = open_session(model, runtime)
    walls = run_often(session, feed, _SECONDS, _MOST)
    kernels = seconds_by_node(named.graph, seconds, shapes)
    running = max(sum(one > 0 for one in kernels), 1)
    call = min(max(min(walls) - sum(kernels), 0.0) / running, _LONGEST_CALL)
    return Profile(kernels, call, sum(kernels) + running * call)


def node_name(position: int) -> str:
    """What a node is called while the model is profiled."""
    return f"{_NAME}{position}"


def seconds_by_node(
    graph: ir.Graph,
    seconds: Mapping[tuple[str, str], float],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[float, ...]:
    """Share the time of kernels out among the nodes of the file.

    Args:
        graph: nodes named after their position, `node_name(position)`.
        seconds: time of every kernel, by its (name, operator).
        shapes: shape of every tensor.
    """
    nodes = list(graph)
    number_of = {id(node): number for number, node in enumerate(nodes)}
    kernels = [0.0] * len(nodes)
    left = 0.0
    moved: list[tuple[str, str, float]] = []
    for (name, operator), time_ in seconds.items():
        known = re.match(rf"{_NAME}(\d+)(?!\d)", name)
        if known:
            kernels[int(known[1])] += time_
        elif name.endswith(_BLOCKED):
            moved.append((name.removesuffix(_BLOCKED), operator, time_))
        else:
            left += time_
    makers = {value.name: node for node in nodes for value in node.outputs if value.name}
    for name, operator, time_ in moved:
        node = _behind(makers.get(name), operator, lambda one: not kernels[number_of[id(one)]])
        if node is None:
            left += time_
        else:
            kernels[number_of[id(node)]] += time_
    written = [
        0.0 if time_ or node.op_type in _CONSTANT else _elements(node, shapes)
        for node, time_ in zip(nodes, kernels, strict=True)
    ]
    if not sum(written):
        written = [_elements(node, shapes) for node in nodes]
    share = left / max(sum(written), 1.0)
    return tuple(time_ + share * size for time_, size in zip(kernels, written, strict=True))


def _behind(node: ir.Node | None, operator: str, free: Any) -> ir.Node | None:
    """The nearest node of an operator before the value that its fused kernel is named after."""
    waiting, seen = deque([node] if node is not None else []), set[int]()
    while waiting and len(seen) <= _FUSED:
        one = waiting.popleft()
        if one.op_type == operator and free(one):
            return one
        seen.add(id(one))
        for value in one.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and id(producer) not in seen:
                waiting.append(producer)
    return None


def _elements(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return float(sum(prod(shapes.get(value.name or "", (0,))) for value in node.outputs))
