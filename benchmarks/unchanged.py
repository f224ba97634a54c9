"""Do two checkouts write the same bytes? Models and plans of fixed runs, compared.

    python benchmarks/unchanged.py OLD NEW [--zoo FOLDER] [--only REGEX]

OLD and NEW are checkouts of onnxprune, each with its own `.venv` or usable by this Python. Every
run is made by the command line in a process for each checkout, with one thread and fixed seeds:
the models of models/ in some twenty ways each, and with --zoo every eleventh graph of a folder as
for `benchmarks/zoo.py`, without samples, with `--normalised-axes`, and on eight random samples.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION = {
    "digits_mlp": "digits_mlp",
    "digits_resnet": "digits_resnet",
    "digits_resnet_bn": "digits_resnet",
    "digits_transformer": "digits_transformer",
    "spirals_mlp": "spirals",
}
PLAIN = {
    "default": "",
    "l1": "--criterion l1 --target channels=0.6",
    "params": "--target params=0.7 --round-to 4",
    "random": "--criterion random --seed 3",
}
SAMPLED = {
    "macs": "--target macs=0.5",
    "mean": "--compensate mean --target macs=0.6",
    "none": "--compensate none --criterion variance --target params=0.6",
    "memory": "--target memory=0.8 --target params=0.6",
    "size": "--target size=0.7",
    "steps": "--target macs=0.6 --steps 2",
    "blocks": "--target macs=0.5 --blocks",
    "taylor": "--criterion taylor --target macs=0.6",
    "fisher": "--criterion fisher --target macs=0.6 --normalised-axes",
    "max-drop": "--max-drop 2",
    "passes": "--passes remove-lossless,merge-duplicates,prune --target macs=0.6",
    "sparsify": "--passes sparsify-weights",
    "quantize": "--passes prune,quantize --target macs=0.7",
}
ZOO = {"plain": "", "normalised": "--normalised-axes --target params=0.6"}


def runs(folder: Path, zoo: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of every run, without the output; feeds are written to a folder."""
    for name, samples in CALIBRATION.items():
        model = str(ROOT / "models" / f"{name}.onnx")
        data = str(ROOT / "models" / f"{samples}_calibration.npz")
        for tag, options in PLAIN.items():
            yield f"{name} {tag}", [model, *options.split()]
        for tag, options in SAMPLED.items():
            yield f"{name} {tag}", [model, "--calibration", data, *options.split()]
    if zoo is None:
        return
    spec = importlib.util.spec_from_file_location("feed", zoo / "feed.py")
    assert spec is not None
    assert spec.loader is not None
    feed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(feed)
    for entry in json.loads((zoo / "index.json").read_text())["models"][::11]:
        model = str(zoo / entry["path"])
        samples = folder / entry["path"].replace("/", "_")
        samples.mkdir(exist_ok=True)
        for seed in range(8):
            np.savez(samples / f"{seed}.npz", **feed.feed_from(entry["feed"], seed))
        for tag, options in ZOO.items():
            yield f"{entry['path']} {tag}", [model, *options.split()]
        sampled = ["--calibration", str(samples), "--target", "macs=0.6"]
        yield f"{entry['path']} samples", [model, *sampled]


def digests(arguments: list[str]) -> dict[str, str]:
    """Exit code of one run and digests of the model and of the groups of the plan it wrote."""
    from onnxprune.cli import main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out, plan = Path(folder, "out.onnx"), Path(folder, "plan.json")
        model, *options = arguments
        code = main(
            ["prune", model, str(out), *options, "--threads", "1", "--plan", str(plan), "-q"]
        )
        result = {"exit": str(code)}
        if out.exists():
            result["model"] = hashlib.sha256(out.read_bytes()).hexdigest()
        if plan.exists():
            groups = json.loads(plan.read_text()).get("groups", [])
            result["groups"] = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
        return result


def all_digests(checkout: Path, jobs: Path) -> dict[str, dict[str, str]]:
    """The digests of all runs, by a process that imports from a checkout."""
    own = checkout / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, str(Path(__file__).resolve()), "--jobs", str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    result: dict[str, dict[str, str]] = json.loads(done.stdout)
    return result


def main() -> int:
    """Compare two checkouts; exit code 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.jobs is not None:
        jobs = json.loads(arguments.jobs.read_text())
        json.dump({name: digests(words) for name, words in jobs.items()}, sys.stdout)
        return 0
    old, new = arguments.checkouts
    with tempfile.TemporaryDirectory() as folder:
        listed = dict(runs(Path(folder), arguments.zoo))
        jobs = Path(folder, "jobs.json")
        chosen = {name: words for name, words in listed.items() if re.search(arguments.only, name)}
        jobs.write_text(json.dumps(chosen))
        before, after = (all_digests(checkout.resolve(), jobs) for checkout in (old, new))
    differing = [name for name in before if before[name] != after[name]]
    for name in differing:
        print(f"differs: {name}: {before[name]} -> {after[name]}")
    print(f"{len(before)} runs, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
