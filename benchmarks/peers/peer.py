"""Run a peer on a graph in a process of its own, and judge what comes out.

The peer never shares packages with onnxprune: its virtual environment is made on first use in the
user's cache folder, with the one version the figures are about. A result counts as `invalid` when
it does not run in onnxruntime or its inputs or outputs changed, as `failed` when the peer raised,
crashed, wrote nothing or took too long. What it computes cannot be judged: a peer does not say
which units it removed. Parameters are counted as onnxprune counts them, against the graph given.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune.cost.memory import is_parameter
from onnxprune.errors import OnnxPruneError
from onnxprune.model.load import load
from onnxprune.model.observe import constants_of

PEERS = {"onnxsim": ("onnxsim==0.8.1", "prune_with_onnxsim.py")}
TIMEOUT = 600.0
QUIET = ort.SessionOptions()
QUIET.log_severity_level = 4
QUIET.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


class Peer:
    """A tool to compare with.

    Args:
        name: a key of PEERS.
        environment: where its virtual environment is or is to be made; default: in the cache.
    """

    def __init__(self, name: str, environment: Path | None = None) -> None:
        requirement, script = PEERS[name]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = environment or cache / "onnxprune" / "peers" / requirement.replace("==", "-")
        self.name = name
        self.script = Path(__file__).with_name(script)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        # written last, so that an interrupted installation is taken up again
        done = folder / "installed.txt"
        if not done.exists():
            print(f"installing {requirement} into {folder}", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [self.python, "-m", "pip", "install", "--quiet", requirement]
            subprocess.run([*pip, "--disable-pip-version-check"], check=True)
            freeze = [self.python, "-m", "pip", "list", "--format=freeze"]
            done.write_bytes(subprocess.run(freeze, check=True, stdout=subprocess.PIPE).stdout)
        self.packages = done.read_text().split()

    def examine(
        self, path: Path, feeds: list[dict[str, Any]], ratio: float = 0.5, *, simplify: bool = False
    ) -> dict[str, Any]:
        """Prune one graph and judge the result; never raises for what the peer does.

        Args:
            path: the graph.
            feeds: inputs that both graphs have to run on.
            ratio: what share of the units the peer is asked to remove.
            simplify: let the peer prepare the graph with its own simplifier.
        """
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="onnxprune-peer-") as folder:
            target = Path(folder) / "pruned.onnx"
            command = [str(self.python), str(self.script), str(path), str(target), str(ratio)]
            try:
                done = subprocess.run(
                    [*command, *(["--simplify"] if simplify else [])],
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return {
                    "outcome": "failed",
                    "reason": f"no answer within {TIMEOUT:.0f} s",
                    "seconds": time.perf_counter() - started,
                }
            if done.returncode or not target.exists():
                lines = done.stderr.strip().splitlines() or [""]
                return {
                    "outcome": "failed",
                    "reason": f"{_exit(done.returncode)}: {lines[-1]}",
                    "seconds": time.perf_counter() - started,
                }
            # the peer may print as well, but not after the script's own line
            row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return row | _judged(path, target, feeds)


def _judged(original: Path, result: Path, feeds: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        before = parameters(original)
        removed = 1 - parameters(result) / max(before, 1)
        complaint = _complaint(original, result, feeds)
    except OnnxPruneError as error:
        return {"outcome": "invalid", "reason": str(error)}
    except Exception as error:  # whatever onnx, numpy and onnxruntime raise for a broken graph
        return {"outcome": "invalid", "reason": _line(error).replace(str(result), result.name)}
    row = {"removed": removed, "params": before, "batches": len(feeds)}
    if complaint:
        return row | {"outcome": "invalid", "reason": complaint}
    return row | {"outcome": "pruned" if removed > 0 else "unchanged"}


def _complaint(original: Path, result: Path, feeds: list[dict[str, Any]]) -> str:
    """Why a result cannot stand in for the original, or nothing."""
    before, after = _session(original), _session(result)
    for kind in ("inputs", "outputs"):
        old, new = (
            [(value.name, value.type) for value in getattr(session, f"get_{kind}")()]
            for session in (before, after)
        )
        if old != new:
            return f"its {kind} are {new} instead of {old}"
    for feed in feeds:
        wanted, got = before.run(None, feed), after.run(None, feed)
        for output, a, b in zip(before.get_outputs(), wanted, got, strict=True):
            if np.shape(a) != np.shape(b):
                return f"output {output.name} is {np.shape(b)} instead of {np.shape(a)}"
    return ""


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), QUIET)


def parameters(source: Path | onnx.ModelProto) -> int:
    """Parameters of a graph, counted as onnxprune's reports count them."""
    constants = constants_of(load(source).model.graph).values()
    return sum(prod(constant.shape.numpy()) for constant in constants if is_parameter(constant))


def _exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
