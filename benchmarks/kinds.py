"""Every kind of pruning side by side: what it does to quality, size, MACs and measured latency.

    python benchmarks/kinds.py [--cifar FOLDER] [--encoder FOLDER] [--only TEXT] [--kinds TEXT]
                               [--threads 1] [--json FILE]

Subjects: the digits networks of models/; with --cifar ResNet-20 on CIFAR-10 (resnet20.onnx,
calibration.npz, test.npz); with --encoder a sentence encoder as `quality.py` exports it. A row is
a pipeline: calibrated on the calibration samples, judged on test samples no pass sees. Latency is
measured against the original in alternation, on a feed of the first samples. Quality is accuracy,
or for the encoder the cosine to the original's embedding.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from quality_feeds import calibration
from quality_subjects import Judge, Subject, cifar, encoder, small_models

import onnxprune
from onnxprune.cost.latency import measure_pair
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("digits_resnet", "digits_transformer")
ROWS = 32
SECONDS = 3.0


def pruned(share: float, **options: Any) -> dict[str, Any]:
    """The step that keeps a share of the MACs."""
    return {"prune": {"target": {"macs": share}, **options}}


def sparse(**options: Any) -> dict[str, Any]:
    """The step that sets weights to zero."""
    return {"sparsify-weights": options}


STATIC: dict[str, Any] = {"quantize": {"mode": "static"}}
DYNAMIC: dict[str, Any] = {"quantize": {"mode": "dynamic"}}

KINDS: dict[str, list[Any]] = {
    "channels, macs=0.75": [pruned(0.75)],
    "channels, macs=0.5": [pruned(0.5)],
    "weights 50 %, magnitude": [sparse(amount=0.5, criterion="magnitude")],
    "weights 50 %, wanda": [sparse(amount=0.5, criterion="wanda")],
    "weights 50 %, obs": [sparse(amount=0.5, criterion="obs")],
    "weights 50 %, obs, global": [sparse(amount=0.5, criterion="obs", threshold="global")],
    "weights 80 %, obs, stored sparse": [sparse(amount=0.8, criterion="obs", store="sparse")],
    "weights 2:4, magnitude": [sparse(pattern="2:4", criterion="magnitude")],
    "weights 2:4, obs": [sparse(pattern="2:4", criterion="obs")],
    "weights 4:8, obs": [sparse(pattern="4:8", criterion="obs")],
    "blocks 4x1, 50 %, obs": [sparse(pattern="4x1", criterion="obs")],
    "merge-duplicates, 0.95": [{"merge-duplicates": {"similarity": 0.95}}],
    "quantize, static": [STATIC],
    "quantize, dynamic": [DYNAMIC],
    "macs=0.75, then static": [pruned(0.75), STATIC],
    "macs=0.5, then static": [pruned(0.5), STATIC],
    # integer convolutions gain nothing from widths that are no multiple of their kernels' steps
    "macs=0.75, round 16, then static": [pruned(0.75, round_to=16), STATIC],
    "macs=0.75, then dynamic": [pruned(0.75), DYNAMIC],
    "static, then macs=0.75": [STATIC, pruned(0.75)],
    "macs=0.75, 2:4, then static": [pruned(0.75), sparse(pattern="2:4"), STATIC],
    # one residual block gone; fails with a reason where there is none
    "remove-blocks, 1": [{"remove-blocks": {"count": 1}}],
}
"""Name of the row -> its pipeline. Passes that are not installed are left out."""


def rows(
    subject: Subject, kinds: Mapping[str, Sequence[Any]], threads: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Run every kind on one subject."""
    judge = Judge(subject, tests=None, threads=threads)
    samples = calibration(subject.calibration)
    original = load(subject.model).model
    feed = {name: array[:ROWS] for name, array in samples.items()}
    yield row(subject.name, "original", judge.original(), subject.model.stat().st_size, 1.0)
    for kind, passes in kinds.items():
        path = folder / "result.onnx"
        started = time.perf_counter()
        try:
            result = onnxprune.run_pipeline(
                subject.model, passes, calibration=samples, threads=threads, measure_latency=False
            )
        except onnxprune.OnnxPruneError as error:
            yield {"subject": subject.name, "kind": kind, "failed": str(error)}
            continue
        seconds = time.perf_counter() - started
        result.save(path)
        found = judge.judge(path)
        made = load(path).model
        latency = measure_pair(original, made, feed, Runtime(threads=threads), SECONDS)
        one = row(subject.name, kind, found, path.stat().st_size, found["kept"])
        yield one | {"latency": latency.ratio, "interval": latency.interval, "seconds": seconds}


def row(
    subject: str, kind: str, found: Mapping[str, float], size: int, macs: float
) -> dict[str, Any]:
    """Figures of one model."""
    quality = found["accuracy"] if "accuracy" in found else found["cosine"]
    return {"subject": subject, "kind": kind, "quality": quality, "bytes": size, "macs": macs}


def line(one: Mapping[str, Any], size: int) -> str:
    """One line of the table."""
    start = f"{one['subject']:18} {one['kind']:34}"
    if "failed" in one:
        return f"{start} {one['failed']}"
    text = f"{start} {one['quality']:7.4f}  {one['bytes'] / size:6.1%}  {one['macs']:6.1%}"
    if "latency" in one:
        low, high = one["interval"]
        text += f"  {one['latency']:6.2f} [{low:.2f} {high:.2f}]  {one['seconds']:6.1f} s"
    return text


def installed(passes: Sequence[Any]) -> bool:
    """Whether all passes of a pipeline are there."""
    from onnxprune.pipelines.registry import installed_passes

    known = {one.name for one in installed_passes()}
    return all(name in known for step in passes for name in step)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="folder of resnet20.onnx and its samples")
    parser.add_argument("--encoder", type=Path, help="folder of minilm.onnx and its samples")
    parser.add_argument("--only", default="", help="subjects whose name has this in it")
    parser.add_argument("--kinds", default="", help="rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ort.set_default_logger_severity(4)
    kinds = {name: passes for name, passes in KINDS.items() if arguments.kinds in name}
    kinds = {name: passes for name, passes in kinds.items() if installed(passes)}
    every: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = [one for one in small_models(ROOT / "models") if one.name in SHOWN]
        subjects += cifar(arguments.cifar, folder) if arguments.cifar else []
        subjects += encoder(arguments.encoder) if arguments.encoder else []
        print(f"{'subject':18} {'kind':34} quality    size    MACs  latency [95 %]")
        for subject in subjects:
            if arguments.only not in subject.name:
                continue
            for one in rows(subject, kinds, arguments.threads, folder):
                every.append(one)
                print(line(one, subject.model.stat().st_size), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(every, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
