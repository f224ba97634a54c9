"""Jobs of `speed.py`, each in a process of its own that imports one checkout.

As a script it is the child: it reads one job (JSON) from stdin, prunes, and prints what that took.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from quality_feeds import calibration
from quality_runs import answer, peak_megabytes
from speed_limits import session_of

SCRIPT = Path(__file__).resolve()
COMPARED = 32
"""Samples on which the outputs are compared, the first ones."""


def package_of(checkout: Path, folder: Path) -> Path:
    """A folder to import a checkout from: its package with `passes/` inside, as installed.

    An editable installation of another checkout would provide the `passes` of that one.

    Args:
        checkout: root of the repository.
        folder: made, and filled with links.
    """
    package = folder / "onnxprune"
    package.mkdir(parents=True)
    for entry in (checkout / "onnxprune").resolve(strict=True).iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    if (checkout / "passes").is_dir():
        (package / "passes").symlink_to((checkout / "passes").resolve())
    return folder


def spent() -> float:
    """CPU seconds of this process and of those it waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Prune or sweep as a job says; the imports come before, reading the samples too."""
    import onnxprune
    import onnxprune.api

    samples = None if job["calibration"] is None else calibration(job["calibration"])
    targets, options = job["targets"], {"threads": job["threads"], "measure_latency": False}
    call = onnxprune.sweep if len(targets) > 1 else onnxprune.prune
    chosen = {"targets": targets} if len(targets) > 1 else {"target": targets[0]}
    before, started = spent(), time.perf_counter()
    result = call(job["model"], calibration=samples, **chosen, **options)
    seconds, cpu = time.perf_counter() - started, spent() - before
    found = {"seconds": seconds, "cpu": cpu, "peak_mb": peak_megabytes()}
    found["package"] = onnxprune.__path__[0]
    if len(targets) == 1:
        report = result.report
        found["macs"] = report.result.macs / report.original.macs
    if len(targets) == 1 and samples is not None:
        feed = samples[0] if isinstance(samples, list) else samples
        first = {name: array[:COMPARED] for name, array in feed.items()}
        wanted = session_of(job["model"], 1).run(None, first)[0]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "pruned.onnx")
            result.save(path)
            got = session_of(path, 1).run(None, first)[0]
        found["apart"] = float(np.std(got - wanted) / np.std(wanted))
    return found


def run_command(words: Sequence[str], package: Path, repeats: int = 5) -> dict[str, Any]:
    """Start the interpreter on a package; the fastest of a few times."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    found: list[dict[str, Any]] = []
    for _ in range(repeats):
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=package, stdout=subprocess.DEVNULL
        )
        _, status, use = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            return {"failed": f"ended with code {child.returncode}"}
        seconds = time.perf_counter() - started
        found.append({"seconds": seconds, "cpu": use.ru_utime + use.ru_stime})
    return min(found, key=lambda each: float(each["seconds"]))


if __name__ == "__main__":
    answer(json.load(sys.stdin), work)
