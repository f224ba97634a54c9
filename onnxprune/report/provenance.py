"""Where a result comes from: versions, machine, options, digests of the files."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.cost.timing_cache import machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxprune.model.runtime import Runtime

__all__ = ["Provenance", "file_digest", "provenance_of"]

_LIBRARIES = ("onnxprune", "onnxruntime", "onnx", "onnx-ir", "numpy")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Provenance:
    """What a run depends on.

    Attributes:
        model: path of the original, empty for a model in memory.
        sha256: digest of the original.
        options: how it was pruned, the seed among them.
        versions: of the libraries, of Python and of the system.
        machine: processor, cores, execution providers and threads.
    """

    model: str
    sha256: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str]


def provenance_of(
    path: Path | None, sha256: str, options: Mapping[str, Any], runtime: Runtime
) -> Provenance:
    """Describe a run on this machine.

    Args:
        path: of the original; None for a model in memory.
        sha256: digest of the original.
        options: how it was pruned.
        runtime: how models were run.
    """
    versions = {name: _version(name) for name in _LIBRARIES}
    versions |= {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    known = machine(runtime)
    return Provenance(
        model=str(path) if path is not None else "",
        sha256=sha256,
        options=dict(options),
        versions=versions,
        machine={
            "processor": _processor_name(),
            "cores": known["cores"],
            "providers": known["providers"],
            "threads": known["threads"] if known["threads"] != "0" else "chosen by onnxruntime",
        },
    )


def file_digest(path: str | Path) -> str:
    """Return the sha256 of a file, in hexadecimal.

    Raises:
        OSError: when it cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


def _processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
