"""How long pruning takes, beside what it cannot do without.

    python benchmarks/speed.py [--rows NAME,...|all] [--threads 1,2] [--against CHECKOUT]
                               [--repeats 1] [--cifar FOLDER] [--cache FOLDER] [--scratch FOLDER]
                               [--json FILE]

Rows, each a process of its own:

    resnet20     ResNet-20, 1,024 images of 32 x 32, half of the MACs; trained with --cifar
    sweep        the same, five budgets from 0.8 to 0.4 by one `sweep`
    residual     a residual network of 25 convolutions, 64 to 256 wide, 64 images of 56 x 56
    latency      the same at half the latency instead of half the MACs
    resnet50     ResNet-50, 256 images of 224 x 224: minutes
    bert         BERT-base, 128 texts of 128 tokens: minutes
    minilm       the sentence encoder, 512 sentences; left out where `quality.py` has not made it
    chain4000, chain16000, dense4000, dense8000
                 graphs of many narrow layers (`chain_models.py`) without samples
    import, help an interpreter that imports the package, or shows the help; best of five

Weights are seeded and random where nothing else is said, images smooth noise, tokens random. With
--against every run is made with another checkout too, say of an older commit, by the same
interpreter and right before the run of this one. Columns: wall and CPU seconds of the call (its
imports and the reading of samples left out), most memory resident; the share of the MACs that is
left, and the deviation of the first output from the original's over its own standard deviation.

Behind them the limit: seconds of the forward passes (samples through the original once, and
through each result at the share that its target leaves) and of the products of all Grams at the
measured speed of matrix products (`speed_limits.py` has the formula), and how many times as many
wall and CPU seconds the run took; beside other work on the machine only the latter means anything.
For rows without samples it is the creation of one session, for commands an interpreter that does
nothing. A row that refers to another shows how many times as long it took.

`speed_stages.py` shows the stages of a prune of such chains, and `inspect` over a folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speed_runs
from quality import SHARED, surroundings
from quality_runs import FOLDER, run_job
from speed_models import ROWS, Files, Missing, Row, Sources

NOW, BEFORE = "now", "before"


@dataclass(frozen=True)
class Bench:
    """Carries out rows.

    Attributes:
        packages: by the name of a checkout, a folder to import it from.
        sources: where the files of rows are.
        repeats: runs of each kind; the one of the fewest CPU seconds counts.
        limit: seconds for one run.
    """

    packages: Mapping[str, Path]
    sources: Sources
    repeats: int
    limit: float

    def results(self, row: Row, threads: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The figures of each checkout, each run in alternation."""
        files = row.make(self.sources) if row.make else None
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.packages}
        for _ in range(self.repeats):
            for name in found:
                run = self.once(row, files, threads, self.packages[name])
                seconds = run.get("failed") or f"{run['seconds']:.1f} s, {run['cpu']:.1f} cpu"
                print(f"  {row.text.strip()}, {name}: {seconds}", file=sys.stderr, flush=True)
                found[name].append(run)
        bound = self.bound(row, files, threads)
        for name, runs in found.items():
            finished = [run for run in runs if "failed" not in run]
            best = min(finished, key=lambda run: float(run["cpu"])) if finished else runs[0]
            yield name, best | ({"limit": bound} if finished and bound else {})

    def once(self, row: Row, files: Files | None, threads: int, package: Path) -> dict[str, Any]:
        """One run."""
        if files is None:
            return speed_runs.run_command(row.command, package)
        job = job_of(files, threads) | {"targets": list(row.targets)}
        return run_job(job, limit=self.limit, script=speed_runs.SCRIPT, package=package)

    def bound(self, row: Row, files: Files | None, threads: int) -> dict[str, Any]:
        """Wall and CPU seconds that a row cannot do without; empty where they are not known."""
        if files is None:
            start = speed_runs.run_command(("-c", "pass"), self.sources.scratch)
            found: dict[str, Any] = {"interpreter": [start["seconds"], start["cpu"]]}
        else:
            job = job_of(files, threads) | {"shares": [min(t.values()) for t in row.targets]}
            found = run_job(job, limit=self.limit, script=FOLDER / "speed_limits.py")
        if "failed" in found:
            print(f"  no limit: {found['failed']}", file=sys.stderr)
            return {}
        parts = [found[name] for name in PARTS if name in found]
        seconds, cpu = map(sum, zip(*parts, strict=True))
        return found | {"seconds": seconds, "cpu": cpu}


def job_of(files: Files, threads: int) -> dict[str, Any]:
    """The part of a job that runs and limits have in common."""
    model, samples = files
    calibration = None if samples is None else str(samples)
    return {"model": str(model), "calibration": calibration, "threads": threads}


def line(row: Row, result: Mapping[str, Any]) -> str:
    """One line of the table."""
    head = f"{row.text:30} {result['threads']:2} {result['checkout']:7}"
    if "failed" in result:
        return f"{head} {result['failed'][:120]}"
    text = f"{head} {result['seconds']:8.2f} s {result['cpu']:8.2f} cpu"
    if "peak_mb" in result:
        text += f" {result['peak_mb']:6} MB"
    if "macs" in result:
        text += f"  macs {result['macs']:.2f}"
    if "apart" in result:
        text += f"  apart {result['apart']:.3f}"
    if "limit" in result:
        parts = result["limit"]
        named = (f"{name} {parts[name][0]:.2f}" for name in PARTS if name in parts)
        text += f"  limit {parts['seconds']:.2f} s ({' + '.join(named)})"
        text += "  {:.1f} x, {:.1f} x cpu".format(*result["factor"])
    if "times_base" in result:
        wanted = "" if row.ratio is None else f", goal {row.ratio:g}"
        text += "  {:.2f} of {}, {:.2f} cpu{}".format(
            result["times_base"][0], row.base, result["times_base"][1], wanted
        )
    if "faster" in result:
        text += "  {:.1f} x as fast, {:.1f} x cpu".format(*result["faster"])
    if (goal := row.goal.get(result["threads"])) is not None:
        text += f"  goal {goal:g} s"
    return text


PARTS = ("forward", "products", "session", "interpreter")


def table(bench: Bench, names: Sequence[str], counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """All lines, each printed when it is known; a row that lacks its files is left out."""
    known: dict[tuple[str, int, str], dict[str, Any]] = {}
    for name in names:
        row = ROWS[name]
        for threads in counts if row.threaded else counts[:1]:
            try:
                found = list(bench.results(row, threads))
            except Missing as missing:
                print(f"{row.text:30} left out: {missing}", flush=True)
                break
            for checkout, result in found:
                result |= {"row": name, "threads": threads, "checkout": checkout}
                if "failed" not in result:
                    known[name, threads, checkout] = result
                    before = known.get((name, threads, BEFORE)) if checkout == NOW else None
                    pairs = {
                        "factor": (result, result.get("limit")),
                        "times_base": (result, known.get((row.base, threads, checkout))),
                        "faster": (before, result if before else None),
                    }
                    result |= {key: times(a, b) for key, (a, b) in pairs.items() if a and b}
                print(line(row, result), flush=True)
                yield result


def times(long: Mapping[str, Any], short: Mapping[str, Any]) -> list[float]:
    """How many times as many wall and CPU seconds one took."""
    return [long[key] / max(short[key], 1e-9) for key in ("seconds", "cpu")]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="all", help=f"of {', '.join(ROWS)}, or all")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="measure this one too")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many runs")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run")
    parser.add_argument("--cifar", type=Path, default=SHARED / "cifar10")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "onnxprune-bench")
    parser.add_argument("--scratch", type=Path, help="keep what is made here, for the next time")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args(arguments)
    found.rows = list(ROWS) if found.rows == "all" else found.rows.split(",")
    if unknown := set(found.rows) - ROWS.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    found.threads = [int(text) for text in found.threads.split(",")]
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = parsed(words)
    checkouts = {BEFORE: arguments.against} if arguments.against else {}
    checkouts[NOW] = FOLDER.parent
    with tempfile.TemporaryDirectory(prefix="onnxprune-speed-") as folder:
        packages = {
            name: speed_runs.package_of(checkout, Path(folder) / name)
            for name, checkout in checkouts.items()
        }
        scratch = arguments.scratch or Path(folder) / "models"
        scratch.mkdir(parents=True, exist_ok=True)
        sources = Sources(scratch, arguments.cache, arguments.cifar)
        bench = Bench(packages, sources, arguments.repeats, arguments.limit)
        report: list[dict[str, Any]] = []
        for result in table(bench, arguments.rows, arguments.threads):
            report.append(result)
            if arguments.json:
                about = {"environment": surroundings(), "rows": report}
                arguments.json.write_text(json.dumps(about, indent=1))
    return 1 if any("failed" in result for result in report) else 0


if __name__ == "__main__":
    sys.exit(main())
