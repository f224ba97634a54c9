"""Timings kept on disk, so that a machine measures a kernel once.

One JSON file for each kernel, named by the digest of everything that its time depends on: a small
file is cheap to replace. Files are written beside their final place and renamed over it, so a
reader sees a whole file or none, also after Ctrl-C and with several processes at work; what two of
them add to one file at the same moment may be lost once, and is then measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path

from onnxprune.model.runtime import Runtime

_FORMAT = "onnxprune-timings"
_VERSION = 1
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")


def cache_folder() -> Path:
    """Where timings are kept: $ONNXPRUNE_CACHE, else the user's cache directory."""
    chosen = os.environ.get("ONNXPRUNE_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("onnxprune"))


def machine(runtime: Runtime) -> dict[str, str]:
    """Everything but the kernel that a time depends on: onnxruntime, CPU, providers, threads."""
    import onnxruntime as ort

    return {
        "onnxruntime": ort.__version__,
        "cpu": _processor(),
        "cores": str(os.cpu_count()),
        "providers": ",".join(runtime.providers),
        **thread_key(runtime),
    }


def thread_key(runtime: Runtime) -> dict[str, str]:
    """The part of the key that says on how many threads a kernel was timed."""
    return {"threads": str(runtime.threads)}


class TimingCache:
    """Seconds by name, for one kernel at a time.

    Args:
        folder: where the files are; made when first written to. None keeps nothing on disk.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[str, dict[str, float]] = {}

    def read(self, key: Mapping[str, str]) -> dict[str, float]:
        """Timings of a kernel by name, the same dictionary each time; `add` adds to it."""
        digest = _digest(key)
        if digest not in self._read:
            self._read[digest] = self._on_disk(key)
        return self._read[digest]

    def add(self, key: Mapping[str, str], timings: Mapping[str, float]) -> None:
        """Add timings of a kernel, and to what is on disk.

        A folder that cannot be written to costs a measurement next time, nothing else.
        """
        self.read(key).update(timings)
        if self._folder is None:
            return
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "key": dict(key),
            "timings": {**self._on_disk(key), **timings},
        }
        with suppress(OSError):
            _replace(self._path(self._folder, key), json.dumps(content, indent=1))

    def _on_disk(self, key: Mapping[str, str]) -> dict[str, float]:
        """What a file holds; nothing where it is missing, damaged or of another kernel."""
        if self._folder is None:
            return {}
        try:
            content = json.loads(self._path(self._folder, key).read_bytes())
            expected = (_FORMAT, _VERSION, dict(key))
            if (content["format"], content["version"], content["key"]) != expected:
                return {}
            timings = {str(name): float(value) for name, value in content["timings"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {name: value for name, value in timings.items() if isfinite(value) and value >= 0}

    @staticmethod
    def _path(folder: Path, key: Mapping[str, str]) -> Path:
        return folder / "timings" / f"{_digest(key)}.json"


def _digest(key: Mapping[str, str]) -> str:
    text = json.dumps(dict(sorted(key.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".timings-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def cpu_fields() -> dict[str, str]:
    """What Linux says of the first processor in /proc/cpuinfo; empty on other systems."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def processor_name() -> str:
    """What the processor calls itself."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def _processor() -> str:
    """The CPU with what it can do: virtual machines often hide the model but not the flags."""
    fields = cpu_fields()
    known = [fields[name] for name in _CPU_FIELDS if name in fields]
    if not known:
        return f"{platform.machine()} {platform.processor()}".strip()
    digest = hashlib.sha256("|".join(known).encode()).hexdigest()[:12]
    return f"{fields.get('model name', platform.machine())} {digest}"
