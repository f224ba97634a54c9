"""Every kind of pruning side by side: what it does to quality, size, MACs and measured latency.

    python benchmarks/kinds.py [--cifar FOLDER] [--encoder FOLDER] [--only TEXT] [--kinds TEXT]
                               [--threads 1] [--json FILE]

Subjects: the digits networks of models/; with --cifar ResNet-20 on CIFAR-10 (resnet20.onnx,
calibration.npz, test.npz); with --encoder a sentence encoder as `quality.py` exports it. A row is
a pipeline: calibrated on the calibration samples, judged on test samples no pass sees. Latency is
measured against the original in alternation, on a feed of the first samples. Quality is accuracy,
or for the encoder the cosine to the original's embedding. Rows of keep-classes are judged on the
test samples of these classes, those of keep-tokens on the same sentences in the new ids.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from quality_feeds import calibration, load_arrays
from quality_subjects import DivergenceEvaluator, Subject, cifar, encoder, small_models

import onnxprune
from onnxprune.cost.latency.measure import measure_pair
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

KEPT = (3, 7, 9)
CLASSES: dict[str, Any] = {"keep-classes": {"keep": "3,7,9"}}

KINDS: dict[str, list[Any]] = {
    "channels, macs=0.75": [pruned(0.75)],
    "channels, macs=0.5": [pruned(0.5)],
    "channels and blocks, macs=0.35": [pruned(0.35, blocks=True)],
    "weights 50 %, magnitude": [sparse(amount=0.5, criterion="magnitude")],
    "weights 50 %, wanda": [sparse(amount=0.5, criterion="wanda")],
    "weights 50 %, obs": [sparse(amount=0.5, criterion="obs")],
    "weights 80 %, obs, stored sparse": [sparse(amount=0.8, criterion="obs", store="sparse")],
    "weights 2:4, magnitude": [sparse(pattern="2:4", criterion="magnitude")],
    "weights 2:4, obs": [sparse(pattern="2:4", criterion="obs")],
    "weights 4:8, obs": [sparse(pattern="4:8", criterion="obs")],
    "blocks 4x1, 50 %, obs": [sparse(pattern="4x1", criterion="obs")],
    "merge-duplicates, 0.95": [{"merge-duplicates": {"similarity": 0.95}}],
    "quantize, static": [STATIC],
    "quantize, dynamic": [DYNAMIC],
    # widths keep the multiple that `quantize` prefers
    "macs=0.75, then static": [pruned(0.75), STATIC],
    "macs=0.5, then static": [pruned(0.5), STATIC],
    "macs=0.75, round 1, then static": [pruned(0.75, round_to=1), STATIC],
    "macs=0.75, then dynamic": [pruned(0.75), DYNAMIC],
    "static, then macs=0.75": [STATIC, pruned(0.75)],
    "macs=0.75, 2:4, then static": [pruned(0.75), sparse(pattern="2:4"), STATIC],
    # residual blocks gone; fails with a reason where there are none
    "remove-blocks, 1": [{"remove-blocks": {"count": 1}}],
    "remove-blocks, 2": [{"remove-blocks": {"count": 2}}],
    "keep-classes 3, 7, 9": [CLASSES],
    "keep-classes 3, 7, 9, macs=0.4": [CLASSES, pruned(0.4)],
    "keep-tokens, those that occur": [{"keep-tokens": {}}],
}
"""Name of the row -> its pipeline. Passes that do not fit a subject are left out."""

IDS = "input_ids"


def rows(
    subject: Subject, kinds: Mapping[str, Sequence[Any]], threads: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Run every kind on one subject."""
    judge = DivergenceEvaluator(subject, tests=None, threads=threads)
    samples = calibration(subject.calibration)
    first = samples if isinstance(samples, dict) else samples[0]
    original = load(subject.model).model
    feed = {name: array[:ROWS] for name, array in first.items()}
    yield row(subject.name, "original", judge.original(), subject.model.stat().st_size, 1.0)
    if judge.labels is not None:
        found = of_classes(judge, judge.wanted[-1][:, list(KEPT)])
        yield row(
            subject.name, "original, classes 3, 7, 9", found, subject.model.stat().st_size, 1.0
        )
    for kind, given in kinds.items():
        path = folder / "result.onnx"
        passes = given
        if "keep-tokens" in given[0]:
            if IDS not in first:
                continue
            passes = [{"keep-tokens": {"keep": str(tokens(subject, folder))}}]
        if "keep-classes" in given[0] and judge.labels is None:
            continue
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
        found = judged(judge, path, given[0], folder)
        macs = result.steps[-1].sizes.macs / result.original.macs
        made = load(path).model
        here = renumbered(feed, folder) if "keep-tokens" in given[0] else feed
        latency = measure_pair(original, made, here, Runtime(threads=threads), SECONDS)
        one = row(subject.name, kind, found, path.stat().st_size, macs)
        yield one | {"latency": latency.ratio, "interval": latency.interval, "seconds": seconds}


def judged(judge: DivergenceEvaluator, path: Path, first: Any, folder: Path) -> dict[str, float]:
    """How well a result does what is left of the task."""
    if "keep-classes" in first:
        return of_classes(judge, judge.outputs(path)[-1])
    if "keep-tokens" in first:
        judge.feeds = [(part, renumbered(feed, folder)) for part, feed in judge.feeds]
    return judge.metrics(judge.outputs(path))


def of_classes(judge: DivergenceEvaluator, scores: Any) -> dict[str, float]:
    """Accuracy on the test samples of the kept classes, of scores for these classes alone."""
    mine = np.isin(judge.labels, KEPT)
    best = np.array(KEPT)[scores[mine].argmax(1)]
    return {"accuracy": float((best == judge.labels[mine]).mean())}


def tokens(subject: Subject, folder: Path) -> Path:
    """A file of the ids that occur in the samples of a subject."""
    ids = [np.unique(load_arrays(file)[IDS]) for file in (subject.calibration, subject.test)]
    path = folder / "tokens.txt"
    path.write_text("\n".join(map(str, np.unique(np.concatenate(ids)).tolist())))
    return path


def renumbered(feed: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A feed in the ids that are left when only those of `tokens` stay."""
    kept = np.loadtxt(folder / "tokens.txt", np.int64)
    return {**feed, IDS: np.searchsorted(kept, feed[IDS]).astype(feed[IDS].dtype)}


def row(
    subject: str, kind: str, found: Mapping[str, float], size: int, macs: float
) -> dict[str, Any]:
    """Figures of one model."""
    quality = found["accuracy"] if "accuracy" in found else found["cosine"]
    return {"subject": subject, "kind": kind, "quality": quality, "bytes": size, "macs": macs}


def line(figures: Mapping[str, Any], size: int) -> str:
    """One line of the table."""
    start = f"{figures['subject']:18} {figures['kind']:34}"
    if "failed" in figures:
        return f"{start} {figures['failed']}"
    text = (
        f"{start} {figures['quality']:7.4f}  {figures['bytes'] / size:6.1%}  {figures['macs']:6.1%}"
    )
    if "latency" in figures:
        low, high = figures["interval"]
        text += f"  {figures['latency']:6.2f} [{low:.2f} {high:.2f}]  {figures['seconds']:6.1f} s"
    return text


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="folder of resnet20.onnx and its samples")
    parser.add_argument("--encoder", type=Path, help="folder of minilm.onnx and its samples")
    parser.add_argument("--only", default="", help="subjects whose name has this in it")
    parser.add_argument("--kinds", default="", help="rows whose name has this pattern in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ort.set_default_logger_severity(4)
    kinds = {name: passes for name, passes in KINDS.items() if re.search(arguments.kinds, name)}
    every: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = [subject for subject in small_models(ROOT / "models") if subject.name in SHOWN]
        subjects += cifar(arguments.cifar, folder) if arguments.cifar else []
        subjects += encoder(arguments.encoder) if arguments.encoder else []
        print(f"{'subject':18} {'kind':34} quality    size    MACs  latency [95 %]")
        for subject in subjects:
            if arguments.only not in subject.name:
                continue
            for figures in rows(subject, kinds, arguments.threads, folder):
                every.append(figures)
                print(line(figures, subject.model.stat().st_size), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(every, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
