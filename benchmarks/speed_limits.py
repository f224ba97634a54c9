"""What a run cannot do without: forward passes of the samples, and the products of the Grams.

A layer of D unknowns, O outputs and g groups is a regression of n rows; its normal equations take
(in multiplications, of which only the symmetric half of the Gram counts)::

    g (n D^2 / 2 + D^3 / 6) + D^2 O        n = min(rows there are, 8 D)

With n = 8 D least squares has D / (n - D) = 1/7 more error than with endless rows. The samples go
through the original once and through each result once, which has the share of its target left.
The time of the products is that at the machine's speed of float32 products of square matrices.

As a script it is a process of its own: it reads one job (JSON) from stdin, measures with the
threads of the job, and prints what it found.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from quality_feeds import batches, load_arrays
from quality_runs import answer

ROWS_PER_UNKNOWN = 8
SIZE, PRODUCTS = 1024, 12
LONGEST = 20.0
"""Seconds of forward passes that are measured; the rest of the samples is taken to be alike."""


@dataclass(frozen=True)
class Layer:
    """A linear layer: rows for each sample, unknowns and outputs of each of its groups."""

    rows: float
    unknowns: int
    outputs: int
    groups: int = 1

    def multiplications(self, samples: int) -> float:
        """Of its normal equations."""
        unknowns = self.unknowns
        rows = min(self.rows * samples, ROWS_PER_UNKNOWN * unknowns)
        square = rows * unknowns**2 / 2 + unknowns**3 / 6 + unknowns**2 * self.outputs
        return self.groups * square


def layers(model: onnx.ModelProto, feed: Mapping[str, Any]) -> Iterator[Layer]:
    """The convolutions and matrix products with constant weights; runs one feed.

    Args:
        model: changed, its layers' outputs become outputs.
        feed: samples along the first axis of each input.
    """
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            weights[node.output[0]] = tuple(node.attribute[0].t.dims)
    found = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(weights.get(node.input[1], ())) > 1
    ]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in found)
    results = session_of(model.SerializeToString(), 0).run(None, dict(feed))
    samples = len(next(iter(feed.values())))
    for node, result in zip(found, results, strict=True):
        shape = weights[node.input[1]]
        attributes = {each.name: each.i for each in node.attribute}
        if node.op_type == "Conv":
            groups, outputs = attributes.get("group", 1), shape[0]
            unknowns = int(np.prod(shape[1:]))
        else:
            shape = shape[::-1] if attributes.get("transB") else shape
            groups, (unknowns, outputs) = int(np.prod(shape[:-2])), shape[-2:]
        rows = result.size / outputs / samples
        yield Layer(rows, unknowns, outputs // (groups if node.op_type == "Conv" else 1), groups)


def session_of(model: bytes | str, threads: int) -> ort.InferenceSession:
    """A session on the CPU; 0 threads for as many as there are."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> list[float]:
        """Wall and CPU seconds of this process."""
        return [time.perf_counter() - self._wall, time.process_time() - self._cpu]


def products_per_second(threads: int) -> float:
    """Multiplications of float32 matrix products in a second, the best of a few.

    By CPU seconds, so that other work on the machine does not count.
    """
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((SIZE, SIZE), np.float32) for _ in range(2))
    times = []
    for _ in range(PRODUCTS):
        clock = Clock()
        first @ second
        times.append(clock.read()[1] / threads)
    return float(SIZE**3 / min(times))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU seconds of what a run cannot do without, by its parts.

    Args:
        job: model and calibration (paths, the second may be None), threads, and shares, the part
            that each target leaves.
    """
    clock = Clock()
    session = session_of(job["model"], job["threads"])
    if job["calibration"] is None:
        return {"session": clock.read()}
    feeds = batches(load_arrays(job["calibration"]), 32)
    session.run(None, feeds[0][1])
    total = sum(len(part) for part, _ in feeds)
    seen, clock = 0, Clock()
    for part, feed in feeds:
        session.run(None, feed)
        seen += len(part)
        if clock.read()[0] > LONGEST:
            break
    passes = (1 + sum(job["shares"])) * total / seen
    forward = [passes * seconds for seconds in clock.read()]
    del session
    one = {name: array[:1] for name, array in feeds[0][1].items()}
    found = list(layers(onnx.load(job["model"]), one))
    count = sum(layer.multiplications(total) for layer in found) * len(job["shares"])
    speed = products_per_second(job["threads"])
    products = [count / speed, count / speed * job["threads"]]
    about = {"layers": len(found), "multiplications": count, "speed": speed}
    return about | {"forward": forward, "products": products}


if __name__ == "__main__":
    answer(json.load(sys.stdin), measure)
