"""Asked latency against measured latency, on graphs of real size.

    python benchmarks/latency.py [--only TEXT] [--targets 0.7,0.5,0.35] [--threads 1,2]
                                 [--json FILE]
    python benchmarks/latency.py --predict ...

The first form prunes every graph of `latency_models.py` to each latency, without samples, and
measures the result here: original and result in alternation, sessions of our own. Then it prunes
once more to the MACs that were reached, with `round_to=1`, and times that against the result: what
the rounding is worth. Columns: asked and measured ratio with its 95 % interval, ratio of MACs, how
much faster than without rounding, seconds for everything, exit code of the command line.

The second form asks the latency table alone: predicted and measured ratio of random cuts to a
share of the MACs, unrounded and rounded to the steps that the table finds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from latency_models import MODELS

import onnxprune
from onnxprune.allocation.prefixes import choose
from onnxprune.calibration.context import RunContext
from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.latency.measure import compare_times
from onnxprune.cost.latency.table import LatencyTable, group_multiples
from onnxprune.coupling.analysis import Analysis, analyse
from onnxprune.coupling.cut import Cut, Removal
from onnxprune.importance.removal_order import aligned, removal_order
from onnxprune.model.load import convert, load
from onnxprune.model.runtime import Runtime
from onnxprune.options import PruneOptions
from onnxprune.surgery.operators.normalisation import keep_statistics
from onnxprune.surgery.slicing import slice_removed

SECONDS = 4.0
SESSIONS = 4
TOLERANCE = 0.05


def feed_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Random inputs of the declared shapes."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [axis.dim_value or 1 for axis in tensor.shape.dim]
        if tensor.elem_type == onnx.TensorProto.INT64:
            feed[value.name] = rng.integers(0, 1000, shape)
        else:
            feed[value.name] = rng.standard_normal(shape, np.float32)
    return feed


def compare(first: onnx.ModelProto, second: onnx.ModelProto, threads: int) -> dict[str, Any]:
    """Time two models in alternation; ratio of the second to the first."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # threads of one session that wait for its next run would slow the other down
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    models = (first, second)
    feed = feed_of(first)
    times: list[tuple[float, float]] = []
    for _ in range(SESSIONS):  # a session may be fast or slow for good
        sessions = [ort.InferenceSession(m.SerializeToString(), options, providers) for m in models]
        for session in sessions:
            session.run(None, feed)
        count, end = 0, time.perf_counter() + SECONDS / SESSIONS
        while time.perf_counter() < end or count < 10:
            pair = [0.0, 0.0]
            for which in (0, 1) if count % 2 else (1, 0):
                start = time.perf_counter()
                sessions[which].run(None, feed)
                pair[which] = time.perf_counter() - start
            times.append((pair[0], pair[1]))
            count += 1
    found = compare_times(times)
    return {"ratio": found.ratio, "interval": found.interval, "noise": found.noise}


def pruned(model: onnx.ModelProto, threads: int, **options: Any) -> Any:
    """Prune without samples and without the package's own measurement for the report."""
    return onnxprune.prune(model, threads=threads, measure_latency=False, **options)


def examine(name: str, model: onnx.ModelProto, asked: float, threads: int) -> dict[str, Any]:
    """Prune one model to one latency; says how the command line would have ended."""
    row: dict[str, Any] = {"model": name, "threads": threads, "asked": asked}
    started = time.perf_counter()
    try:
        result = pruned(model, threads, target={"latency": asked}, round_to="auto")
    except onnxprune.NothingPrunable as error:
        return row | {"exit": 3, "reason": str(error), "seconds": time.perf_counter() - started}
    except onnxprune.OnnxPruneError as error:
        return row | {"exit": 2, "reason": str(error), "seconds": time.perf_counter() - started}
    row |= {"exit": 0, "seconds": time.perf_counter() - started}
    row |= compare(model, result.model, threads)
    report = result.report
    row["macs"] = report.result.macs / report.original.macs
    row["met"] = row["ratio"] <= asked * (1 + TOLERANCE)
    try:
        unrounded = pruned(model, threads, target={"macs": row["macs"]}, round_to=1)
        row["gain"] = 1 / compare(unrounded.model, result.model, threads)["ratio"]
    except onnxprune.OnnxPruneError as error:
        row["reason"] = f"without rounding: {error}"
    return row


def predictions(
    name: str, model: onnx.ModelProto, shares: Sequence[float], threads: int
) -> Iterator[dict[str, Any]]:
    """Predicted and measured ratio of random cuts."""
    options = PruneOptions(runtime=Runtime(threads=threads))
    analysis = analyse(load(model).model, RunContext(runtime=options.runtime))
    graph, coupling = analysis.model.graph, analysis.coupling
    started = time.perf_counter()
    table = LatencyTable(analysis.model, coupling.facts, options.runtime)
    multiples = group_multiples(table, graph, coupling, analysis.groups)
    seconds = time.perf_counter() - started
    cost = CutCost(graph, coupling, {"latency": table.seconds})
    full = cost.after(())
    for rounding, kept in (("1", dict.fromkeys(multiples, 1)), ("auto", multiples)):
        for share in shares:
            removal = random_cut(analysis, kept, share, cost)
            started = time.perf_counter()
            after = cost.after(removal.removed_units())
            predicted = after["latency"] / full["latency"]
            seconds += time.perf_counter() - started
            small = analysis.model.clone()
            cut = Cut(coupling, removal.removed_units())
            slice_removed(small, cut)
            keep_statistics(small, cut)
            yield {
                "model": name,
                "threads": threads,
                "rounding": rounding,
                "macs": after["macs"] / full["macs"],
                "predicted": predicted,
                **compare(model, convert(small, "proto"), threads),
                "seconds": seconds,
            }
            seconds = 0.0


def random_cut(
    analysis: Analysis, multiples: Mapping[str, int], share: float, cost: CutCost
) -> Removal:
    """A cut to a share of the MACs, the same fraction of every group."""
    rng = np.random.default_rng(0)
    orders = [
        aligned(group, removal_order(group, rng.random(group.size)), multiples[group.name])
        for group in analysis.groups
    ]
    return choose(analysis.groups, orders, {"macs": share}, cost, comparable=False)


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    text = f"{row['model']:13} {row['threads']} threads"
    if "predicted" in row:
        text += f"  round {row['rounding']:4}  predicted {row['predicted']:.3f}"
    else:
        text += f"  asked {row['asked']:.2f}  exit {row['exit']}"
    if "ratio" in row:
        low, high = row["interval"]
        text += f"  measured {row['ratio']:.3f} [{low:.3f} {high:.3f}]  macs {row['macs']:.3f}"
    if "gain" in row:
        text += f"  {row['gain']:.2f}x of unrounded"
    return f"{text}  {row['seconds']:.1f} s  {row.get('reason', '')}".rstrip()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--targets", default="0.7,0.5,0.35")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--predict", action="store_true", help="ask the latency table alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    targets = [float(text) for text in arguments.targets.split(",")]
    rows = []
    for name, make in MODELS.items():
        if arguments.only not in name:
            continue
        model = make()
        for threads in map(int, arguments.threads.split(",")):
            if arguments.predict:
                found: Iterator[dict[str, Any]] = predictions(name, model, targets, threads)
            else:
                found = (examine(name, model, asked, threads) for asked in targets)
            for row in found:
                rows.append(row)
                print(line(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    missed = [row for row in rows if row.get("exit") == 2 or row.get("met") is False]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
