"""How the time of every stage grows with the number of nodes, and of `inspect` over a folder.

    python benchmarks/speed_stages.py [--nodes 1000,4000,16000] [--kinds cnn,transformer,dense]
                                      [--json FILE]
    python benchmarks/speed_stages.py --folder FOLDER

The first form prunes the graphs of `chain_models.py`, every stage timed. The second runs `inspect`
on every graph of a zoo.py folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from chain_models import KINDS

import onnxprune
from onnxprune.allocation.candidates import simple_candidates
from onnxprune.calibration.context import RunContext
from onnxprune.cost.cut_cost import CutCost
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.groups import find_groups, find_refusals
from onnxprune.coupling.trace import trace
from onnxprune.importance.criterion import RankingInputs
from onnxprune.importance.registry import find_criterion
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.options import PruneOptions
from onnxprune.pruning.build import build_plain
from onnxprune.surgery.slicing import slice_removed, zero_removed


class Stopwatch:
    """Times named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, call: Callable[[], Any]) -> Any:
        """Run a call and note how long it took."""
        start = time.perf_counter()
        result = call()
        self.seconds[stage] = round(time.perf_counter() - start, 4)
        return result


def stages(proto: onnx.ModelProto) -> dict[str, Any]:
    """Prune one model, every stage timed; fails when the result does not pass its checks."""
    watch, options = Stopwatch(), PruneOptions()
    model = watch.time("load", lambda: load(proto)).model
    rng = np.random.default_rng(0)
    facts = watch.time("observe", lambda: observe(model, options.runtime, rng))
    coupling = watch.time("trace", lambda: trace(model, facts))
    groups, refused = watch.time(
        "groups", lambda: (tuple(find_groups(coupling)), tuple(find_refusals(coupling)))
    )
    analysis = Analysis(model, coupling, groups, refused)
    criterion = find_criterion(options.criterion)
    ranked = watch.time("order", lambda: criterion.rank(RankingInputs(analysis), groups))
    target = {"params": 0.6}

    def choose() -> Any:
        found = simple_candidates(ranked, target, CutCost(model.graph, coupling), comparable=False)
        return found[-1].removal

    removal = watch.time("choose", choose)

    def cut() -> None:
        removed = Cut(coupling, removal.removed_units())
        masked, sliced = model.clone(), model.clone()
        zero_removed(masked, removed)
        slice_removed(sliced, removed)

    watch.time("cut", cut)
    watch.time("build", lambda: build_plain(analysis, removal, RunContext()))
    start = time.perf_counter()
    onnxprune.prune(proto, target=target, measure_latency=False)
    whole = time.perf_counter() - start
    nodes = len(proto.graph.node)
    return {"nodes": nodes, "found": len(groups), **watch.seconds, "prune": round(whole, 4)}


def inspected(folder: Path) -> Iterator[dict[str, Any]]:
    """Time of `inspect` for every graph of a folder, imports and a first run left out."""
    paths = [
        folder / entry["path"]
        for entry in json.loads((folder / "index.json").read_text())["models"]
    ]
    for path in [paths[0], *paths]:
        start = time.perf_counter()
        try:
            onnxprune.inspect(path)
        except onnxprune.OnnxPruneError as error:
            print(f"{path}: {error}", file=sys.stderr)
        yield {"path": str(path.relative_to(folder)), "seconds": time.perf_counter() - start}


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="1000,4000,16000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--folder", type=Path, help="graphs to inspect instead")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    if arguments.folder:
        rows = list(inspected(arguments.folder))[1:]
        report["inspect"] = sorted(rows, key=lambda row: -row["seconds"])
        times = [row["seconds"] for row in rows]
        print(
            f"{len(rows)} graphs: median {statistics.median(times):.3f} s, max {max(times):.3f} s"
        )
        for row in report["inspect"][:5]:
            print(f"  {row['seconds']:6.3f} s  {row['path']}")
    else:
        report["chains"] = []
        for kind in arguments.kinds.split(","):
            for count in map(int, arguments.nodes.split(",")):
                row = {"kind": kind, **stages(KINDS[kind](count))}
                if not report["chains"]:
                    print("".join(f"{key:>12}" for key in row))
                report["chains"].append(row)
                print("".join(f"{value:>12}" for value in row.values()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
