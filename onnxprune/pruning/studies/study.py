"""What makes two long measurements parts of one: the same model, options and samples.

Their results are written to a file as they come, so that a run that was interrupted goes on where
it stopped, and runs on several machines are put together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from onnxprune.calibration.labels import Labels
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples
from onnxprune.declaration import read_options
from onnxprune.errors import InputError
from onnxprune.importance.registry import resolve_options
from onnxprune.options import RUNTIME_OPTIONS, STUDY_OPTIONS, PruneOptions
from onnxprune.report.records import Study
from onnxprune.verification.metrics import read_metric

_VERSION = 1


def study_options(target: Mapping[str, float], options: Mapping[str, Any]) -> PruneOptions:
    """Check the options of a study, which are those of `prune` without target and max_drop.

    Raises:
        InputError: naming the option that cannot be used.
    """
    options = read_options((*STUDY_OPTIONS, *RUNTIME_OPTIONS), options)
    return resolve_options({**options, "target": target}, calibrated=True)


def study_of(
    sha256: str, samples: Samples, options: PruneOptions, labels: Labels | None = None, **more: Any
) -> Study:
    """Describe a study.

    Args:
        sha256: digest of the model.
        samples: calibration samples; they are read once.
        options: of the run.
        labels: of the samples; None without.
        **more: further settings that decide the results, as JSON has them.
    """
    method = {name: value for name, value in options.to_dict().items() if name != "target"}
    runtime = {"providers": list(options.runtime.providers), "threads": options.runtime.threads}
    labelled = {"labels": None if labels is None else _digest(labels)}
    versions = {"onnxprune": version("onnxprune"), "onnxruntime": ort.__version__}
    return Study(sha256, samples_digest(samples), method | runtime | labelled | more, versions)


def metric_setting(metric: Callable[..., Any] | str | None) -> dict[str, str]:
    """A metric as a setting of a study; nothing without, as in studies of older versions.

    Raises:
        InputError: for a metric that cannot be used.
    """
    found = read_metric(metric)
    if found is None:
        return {}
    return {"metric": metric if isinstance(metric, str) else found.name}


def samples_digest(samples: Samples) -> str:
    """Return the sha256 of names, types, shapes and values, in hexadecimal."""
    digest = hashlib.sha256()
    for feed in samples.batches(BATCH):
        for name, array in feed.items():
            _add(digest, name, array)
    return digest.hexdigest()


def _digest(labels: Labels) -> str:
    digest = hashlib.sha256()
    _add_object(digest, labels)
    return digest.hexdigest()


def _add_object(digest: hashlib._Hash, value: Any) -> None:
    """Add an array, or anything that labels may hold."""
    if isinstance(value, np.ndarray):
        _add(digest, "", value)
    elif isinstance(value, Mapping):
        _add_object(digest, list(value.items()))
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)}\0".encode())
        for item in value:
            _add_object(digest, item)
    else:
        digest.update(repr(value).encode())


def _add(digest: hashlib._Hash, name: str, array: NDArray[Any]) -> None:
    digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
    # strings are Python objects: their addresses say nothing
    digest.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())


def written(study: Study, form: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of results holds, as plain data."""
    return {"format": form, "version": _VERSION, "study": study.to_dict(), **results}


def read_study(path: str | Path, form: str) -> tuple[Study, dict[str, Any]]:
    """Read a file of results.

    Args:
        path: a JSON file.
        form: its "format", such as "onnxprune-sweep".

    Returns:
        the study and everything else in the file.

    Raises:
        InputError: when it cannot be read or holds something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path}: is not a JSON file; expected {form}") from None
    if not isinstance(data, dict) or data.get("format") != form:
        raise InputError(f"{path}: is not a file of the format {form}")
    if data.get("version") != _VERSION:
        raise InputError(f"{path}: has version {data.get('version')}, expected {_VERSION}")
    try:
        return Study(**data["study"]), data
    except (KeyError, TypeError):
        raise InputError(f"{path}: is damaged: it does not say what was studied") from None
