"""Prune the full-size ONNX Model Zoo graphs that ship inside the onnx package.

    python benchmarks/model_zoo.py [--json FILE] [--only TEXT] [--channels 0.5]
                                   [--against onnxsim [--environment FOLDER]]

The files (`onnx/backend/test/data/light/*.onnx`) make their weights with ConstantOfShape; here they
become initializers with random values: He-scaled weights, positive vectors (so that they can be a
variance). The seed is fixed, and nothing is downloaded.

With --against, the same for a peer (`peers/peer.py` says how its results are judged). It prepares
the graph with its own simplifier first, which merges BatchNormalization into Conv.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from peers.peer import PEERS, Peer

import onnxprune

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
GOAL = 0.6


def with_weights(path: Path, seed: int = 0) -> onnx.ModelProto:
    """One of the light models with random weights instead of computed ones."""
    model, rng = onnx.load(path), np.random.default_rng(seed)
    model.ir_version = 8
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept, used = [], set()
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in known:
            values = random_values(known[node.input[0]].tolist(), rng)
            model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
            used.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for field in (model.graph.initializer, model.graph.input):
        left = [value for value in field if value.name in used]
        del field[:]
        field.extend(left)
    return model


def random_values(shape: list[int], rng: np.random.Generator) -> NDArray[np.float32]:
    """He-scaled normal values; for a vector positive ones."""
    values = rng.standard_normal(shape)
    if len(shape) > 1:
        values *= np.sqrt(2 / max(np.prod(shape[1:]), 1))
    else:
        values = np.abs(values) * 0.1 + 0.5
    return values.astype(np.float32)


def examine(path: Path, channels: float) -> dict[str, Any]:
    """Prune one model; never raises."""
    row: dict[str, Any] = {"model": name_of(path)}
    model = with_weights(path)
    started = time.perf_counter()
    try:
        result = onnxprune.prune(model, target={"channels": channels}, measure_latency=False)
    except onnxprune.OnnxPruneError as error:
        row |= {"outcome": "refused", "reason": str(error)}
    except Exception as error:
        row |= {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
    else:
        report = result.report
        row |= {
            "outcome": "pruned" if report.certificate.holds else "invalid",
            "params": report.original.params,
            "removed": 1 - report.result.params / report.original.params,
            "macs_removed": 1 - report.result.macs / report.original.macs,
            "certificate": report.certificate.error,
            "effect": report.certificate.effect,
            "dropped": report.dropped,
        }
    return row | {"seconds": time.perf_counter() - started}


def examine_peer(peer: Peer, path: Path, channels: float) -> dict[str, Any]:
    """Let a peer prune one model; never raises for what the peer does."""
    model = with_weights(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(1)
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in weights
    }
    feed = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory(prefix="onnxprune-zoo-") as folder:
        onnx.save(model, Path(folder) / path.name)
        row = peer.examine(Path(folder) / path.name, [feed], 1 - channels, simplify=True)
    return {"model": name_of(path), **row}


def name_of(path: Path) -> str:
    """What the model is called in the table."""
    return path.stem.removeprefix("light_")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--channels", type=float, default=0.5)
    parser.add_argument("--against", choices=PEERS, help="examine a peer instead of onnxprune")
    parser.add_argument("--environment", type=Path, help="the peer's; default: in the user's cache")
    arguments = parser.parse_args()
    peer = Peer(arguments.against, arguments.environment) if arguments.against else None
    rows = []
    for path in sorted(FOLDER.glob("light_*.onnx")):
        if arguments.only in path.stem:
            if peer is None:
                row = examine(path, arguments.channels)
            else:
                row = examine_peer(peer, path, arguments.channels)
            rows.append(row)
            ours = ""
            if "certificate" in row:
                ours = f"{row['macs_removed']:6.1%} MACs, certificate {row['certificate']:.1e}, "
            print(
                f"{row['model']:14} {row['outcome']:9} {row.get('removed', 0):6.1%} parameters, "
                f"{ours}{row['seconds']:5.1f} s  "
                f"{row.get('reason', '') or ', '.join(row.get('dropped', {}))}",
                flush=True,
            )
    met = sum(row["outcome"] == "pruned" and row["removed"] >= GOAL for row in rows)
    without = "refused" if peer is None else "unchanged"
    summary = {"models": len(rows), "pruned": 0, without: 0, "invalid": 0, "failed": 0}
    for row in rows:
        summary[row["outcome"]] += 1
    summary[f">={GOAL:.0%}"] = met
    print(json.dumps(summary))
    if arguments.json:
        packages = {"peer": peer.name, "packages": peer.packages} if peer else {}
        report = {**packages, "summary": summary, "models": rows}
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if not peer and (summary["invalid"] or summary["failed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
