"""Jobs of `quality.py` in processes of their own, so that time and peak memory are theirs alone.

As a script it is the child: it reads one job (JSON) from stdin, prunes, and prints what came out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PRUNE, PEER = FOLDER / "quality_runs.py", FOLDER / "quality_peers.py"


def run_job(
    job: dict[str, Any],
    *,
    limit: float,
    script: Path = PRUNE,
    python: Path | None = None,
    package: Path | None = None,
) -> dict[str, Any]:
    """Run one job in a fresh process; never raises, a failure is a result with `failed`.

    Args:
        job: what the script reads; `threads` is for the libraries of matrix products too.
        limit: seconds after which it has failed.
        script: the child.
        python: its interpreter; None for this one.
        package: folder that packages are imported from before all others; None for none.
    """
    threads = str(job["threads"])
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, threads)
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    try:
        done = subprocess.run(
            [str(python or sys.executable), str(script)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=limit,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {limit:.0f} s"}
    answer = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not answer.startswith("{"):
        reason = done.stderr.strip().rpartition("\n")[2] or "no message"
        return {"failed": f"ended with code {done.returncode}: {reason}"}
    result: dict[str, Any] = json.loads(answer)
    return result


def environment(folder: Path, name: str, *packages: str) -> Path:
    """The interpreter of a virtual environment with these packages, made on first use."""
    target = folder / name
    python, finished = target / "bin" / "python", target / ".installed"
    wanted = "\n".join(packages)
    if not finished.exists() or finished.read_text() != wanted:
        print(f"installing {', '.join(packages)} into {target}", file=sys.stderr, flush=True)
        venv.create(target, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *packages], check=True)
        finished.write_text(wanted)
    return python


def peak_megabytes() -> int:
    """The most that was resident since this program was loaded.

    Not ru_maxrss: that also counts the parent as it was at the time of the fork.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 // 10**6
    return 0


def answer(job: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do the work of a job in this process and print its result as the last line."""
    result: dict[str, Any]
    try:
        result = work(job)
    except Exception as error:  # whatever a pruner raises is a result
        result = {"failed": f"{type(error).__name__}: {error}"}
    print("\n" + json.dumps({"peak_mb": peak_megabytes()} | result))


def prune(job: dict[str, Any]) -> dict[str, Any]:
    """Prune as a job says; returns the seconds of `onnxprune.prune` and the options it used."""
    from quality_feeds import calibration

    import onnxprune

    samples = calibration(job["calibration"], job["samples"])
    started = time.perf_counter()
    result = onnxprune.prune(
        job["model"],
        calibration=samples,
        target={"macs": job["budget"]},
        threads=job["threads"],
        measure_latency=False,
        **job["options"],
    )
    seconds = time.perf_counter() - started
    result.save(job["output"])
    return {"seconds": seconds, "used": result.plan.options}


if __name__ == "__main__":
    answer(json.load(sys.stdin), prune)
