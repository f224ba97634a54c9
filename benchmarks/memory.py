"""Resident memory while a model with external data is pruned.

    python benchmarks/memory.py [--gigabytes 3] [--kind mlp|transformer|language]

Writes a seeded float32 model with its weights in one external data file to a temporary folder
(which then holds up to twice its size), prunes it to half of every group with default options and
no calibration in a fresh process, and prints what that process needed above its size after
imports:

    peak       VmHWM: pages of mapped files count as long as they are mapped
    anonymous  largest RssAnon seen by a thread that looks every 5 ms
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

FLOAT = onnx.TensorProto.FLOAT
MODEL, DATA, PRUNED = "model.onnx", "model.onnx.data", "pruned.onnx"


class Writer:
    """Streams weights to the data file while the graph is put together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.written = 0
        (folder / DATA).write_bytes(b"")

    def weight(self, *shape: int) -> str:
        """A random weight scaled so that activations keep their size."""
        tensor = onnx.TensorProto(name=f"w{len(self.weights)}", dims=shape, data_type=FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        value = self.rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
        where = {"location": DATA, "offset": self.written, "length": value.nbytes}
        for key, text in where.items():
            tensor.external_data.add(key=key, value=str(text))
        with (self.folder / DATA).open("ab") as file:
            value.tofile(file)
        self.written += value.nbytes
        self.weights.append(tensor)
        return tensor.name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """One node; returns its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def shape(self, *values: int) -> str:
        """An inline integer vector."""
        name = f"s{len(self.weights)}"
        self.weights.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
        return name

    def finish(self, source: onnx.ValueInfoProto, output: str) -> None:
        """Write the model file."""
        result = helper.make_tensor_value_info(output, FLOAT, None)
        graph = helper.make_graph(self.nodes, "large", [source], [result], self.weights)
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), self.folder / MODEL)


def mlp(writer: Writer, size: float) -> None:
    """Layers 4096 x 4096 with bias and Relu."""
    width, x = 4096, "x"
    while writer.written < size:
        x = writer.add(
            "Add", writer.add("MatMul", x, writer.weight(width, width)), writer.weight(width)
        )
        x = writer.add("Relu", x)
    source = helper.make_tensor_value_info("x", FLOAT, ["n", width])
    writer.finish(source, writer.add("MatMul", x, writer.weight(width, 16)))


def blocks(writer: Writer, x: str, size: float, width: int) -> str:
    """Pre-norm transformer blocks, 16 heads, four times as wide inside."""
    heads, inner = 16, 4 * width

    def norm(x: str) -> str:
        scale, shift = writer.weight(width), writer.weight(width)
        return writer.add("LayerNormalization", x, scale, shift, axis=-1)

    def linear(x: str, rows: int, columns: int) -> str:
        y = writer.add("MatMul", x, writer.weight(rows, columns))
        return writer.add("Add", y, writer.weight(columns))

    def split(x: str, order: list[int]) -> str:
        x = writer.add("Reshape", x, writer.shape(0, 0, heads, width // heads))
        return writer.add("Transpose", x, perm=order)

    while writer.written < size:
        y = norm(x)
        q = split(linear(y, width, width), [0, 2, 1, 3])
        k = split(linear(y, width, width), [0, 2, 3, 1])
        v = split(linear(y, width, width), [0, 2, 1, 3])
        y = writer.add("MatMul", writer.add("Softmax", writer.add("MatMul", q, k)), v)
        y = writer.add("Transpose", y, perm=[0, 2, 1, 3])
        y = writer.add("Reshape", y, writer.shape(0, 0, width))
        x = writer.add("Add", x, linear(y, width, width))
        y = linear(norm(x), width, inner)
        y = writer.add("Mul", y, writer.add("Sigmoid", y))
        x = writer.add("Add", x, linear(y, inner, width))
    return norm(x)


def transformer(writer: Writer, size: float) -> None:
    """Blocks of width 2048."""
    source = helper.make_tensor_value_info("x", FLOAT, ["n", "s", 2048])
    writer.finish(source, blocks(writer, "x", size, 2048))


def language(writer: Writer, size: float) -> None:
    """The same with a vocabulary of 50,000 at both ends: tensors of 410 MB."""
    source = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["n", "s"])
    x = writer.add("Gather", writer.weight(50_000, 2048), "ids")
    head = writer.weight(2048, 50_000)
    x = blocks(writer, x, size, 2048)
    writer.finish(source, writer.add("MatMul", x, head))


KINDS = {"mlp": mlp, "transformer": transformer, "language": language}


def status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(folder: Path) -> dict[str, Any]:
    """Prune the model of a folder in this process and say what it took."""
    import onnxruntime  # noqa: F401

    import onnxprune
    import onnxprune.api

    # 5 resets the high-water mark to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before, anonymous_before = status("VmRSS"), status("RssAnon")
    anonymous, finished = [anonymous_before], threading.Event()

    def watch() -> None:
        while not finished.wait(0.005):
            anonymous.append(status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    try:
        result = onnxprune.prune(folder / MODEL)
        pruned = time.perf_counter()
        result.save(folder / PRUNED)
        saved = time.perf_counter()
    finally:
        finished.set()
        thread.join()
    report = result.report
    return {
        "peak_mb": (status("VmHWM") - before) // 10**6,
        "anonymous_mb": (max(anonymous) - anonymous_before) // 10**6,
        "baseline_mb": before // 10**6,
        "prune_seconds": round(pruned - start, 1),
        "save_seconds": round(saved - pruned, 1),
        "model_mb": report.original.bytes // 10**6,
        "result_mb": report.result.bytes // 10**6,
        "written_mb": sum(f.stat().st_size for f in folder.glob(PRUNED + "*")) // 10**6,
        "groups_cut": sum(new < old for old, new in report.widths.values()),
        "certificate": report.certificate.error,
        "effect": report.certificate.effect,
        "left": sorted(f.name for f in folder.iterdir() if f.name.startswith(".")),
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--kind", choices=KINDS, default="mlp")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="onnxprune-memory-", dir=arguments.folder) as folder:
        KINDS[arguments.kind](Writer(Path(folder)), arguments.gigabytes * 1e9)
        command = [sys.executable, __file__, "--measure", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = {"kind": arguments.kind, **json.loads(done.stdout)}
    for key, value in row.items():
        print(f"{key:>16}  {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(row, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
