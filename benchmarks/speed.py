"""How the time of every stage grows with the number of nodes.

    python benchmarks/speed.py [--nodes 1000,4000,16000] [--kinds cnn,transformer,dense]
                               [--json FILE]

Three kinds of generated graphs of about so many nodes, with small widths so that the graph and not
the arithmetic is measured: a chain of residual blocks (Conv, BatchNormalization, Relu), a chain of
pre-norm transformer blocks with the shape arithmetic exporters write, and a densely connected chain
in which every convolution reads everything before it (there `--nodes` counts in hundreds, since the
labels of such a graph grow with the square of its length).

Two more tables:

    python benchmarks/speed.py --folder FOLDER      `inspect` on every graph of a zoo.py folder
    python benchmarks/speed.py --imports            what `import onnxprune` and `--help` take
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTH = 8


class Builder:
    """Collects nodes and seeded weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        """A random float weight."""
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) * 0.3)

    def constant(self, value: Any) -> str:
        """A constant."""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One node; returns its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def model(self, shape: list[int | str], output: str, rank: int) -> onnx.ModelProto:
        """The finished model with input x."""
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", float32, shape)],
            [helper.make_tensor_value_info(output, float32, [None] * rank)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def cnn(count: int) -> onnx.ModelProto:
    """Residual blocks, stages of sixteen with a projection between them."""
    b = Builder()
    x = b.add("Conv", "x", b.weight(WIDTH, 3, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)

    def normed(x: str) -> str:
        scale, shift, mean = (b.weight(WIDTH) for _ in range(3))
        return b.add(
            "BatchNormalization", x, scale, shift, mean, b.constant(np.ones(WIDTH, np.float32))
        )

    block = 0
    while len(b.nodes) < count:
        block += 1
        if block % 16 == 0:
            x = b.add("Conv", x, b.weight(WIDTH, WIDTH, 1, 1))
        y = x
        for _ in range(2):
            y = b.add("Conv", y, b.weight(WIDTH, WIDTH, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
            y = b.add("Relu", normed(y))
        x = normed(b.add("Add", x, y))
    x = b.add("Flatten", b.add("GlobalAveragePool", x))
    return b.model(["n", 3, 8, 8], b.add("Gemm", x, b.weight(WIDTH, 4)), 2)


def transformer(count: int) -> onnx.ModelProto:
    """Pre-norm blocks of two heads, reshapes computed from shapes."""
    b = Builder()
    width, heads = 16, 2
    x = b.add("MatMul", "x", b.weight(4, width))

    def linear(x: str, rows: int, columns: int) -> str:
        return b.add("Add", b.add("MatMul", x, b.weight(rows, columns)), b.weight(columns))

    def norm(x: str) -> str:
        return b.add("LayerNormalization", x, b.weight(width), b.weight(width), axis=-1)

    def reshape(x: str, *tail: int) -> str:
        shape = b.add("Shape", x)
        parts = []
        for axis in range(2):
            part = b.add("Gather", shape, b.constant(np.array(axis, np.int64)))
            parts.append(b.add("Unsqueeze", part, b.constant(np.array([0], np.int64))))
        tails = [b.constant(np.array([n], np.int64)) for n in tail]
        return b.add("Reshape", x, b.add("Concat", *parts, *tails, axis=0))

    def split(x: str, order: list[int]) -> str:
        return b.add("Transpose", reshape(x, heads, width // heads), perm=order)

    while len(b.nodes) < count:
        y = norm(x)
        q = split(linear(y, width, width), [0, 2, 1, 3])
        k = split(linear(y, width, width), [0, 2, 3, 1])
        v = split(linear(y, width, width), [0, 2, 1, 3])
        scores = b.add("Mul", b.add("MatMul", q, k), b.constant(np.float32(0.35)))
        y = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
        y = reshape(b.add("Transpose", y, perm=[0, 2, 1, 3]), width)
        x = b.add("Add", x, linear(y, width, width))
        y = linear(norm(x), width, 2 * width)
        y = b.add("Mul", y, b.add("Sigmoid", y))
        x = b.add("Add", x, linear(y, 2 * width, width))
    return b.model(["n", "s", 4], b.add("MatMul", x, b.weight(width, 4)), 3)


def dense(count: int) -> onnx.ModelProto:
    """Every convolution reads the concatenation of everything before it."""
    b = Builder()
    seen = [b.add("Conv", "x", b.weight(4, 3, 1, 1))]
    while len(seen) < count // 33:
        x = b.add("Concat", *seen, axis=1) if len(seen) > 1 else seen[0]
        x = b.add("Relu", b.add("Mul", x, b.weight(1, 4 * len(seen), 1, 1)))
        seen.append(b.add("Conv", x, b.weight(4, 4 * len(seen), 1, 1)))
    x = b.add("Flatten", b.add("GlobalAveragePool", b.add("Concat", *seen, axis=1)))
    return b.model(["n", 3, 4, 4], b.add("Gemm", x, b.weight(4 * len(seen), 4)), 2)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "cnn": cnn,
    "transformer": transformer,
    "dense": dense,
}


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


def imports() -> dict[str, float]:
    """Seconds of a fresh interpreter, best of three."""
    commands = {
        "python": ["-c", "pass"],
        "import onnxprune": ["-c", "import onnxprune"],
        "import onnxprune.api": ["-c", "import onnxprune.api"],
        "onnxprune --help": ["-m", "onnxprune", "--help"],
        "onnxprune prune --help": ["-m", "onnxprune", "prune", "--help"],
    }
    found = {}
    for name, command in commands.items():
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        found[name] = round(min(times), 3)
    return found


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", default="1000,4000,16000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    if arguments.imports:
        report["imports"] = imports()
        for name, seconds in report["imports"].items():
            print(f"{name:24} {seconds:6.3f} s")
    elif arguments.folder:
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
