"""Records of a run made from its groups, its files and the machine."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.cost.latency.cache import machine, processor_name
from onnxprune.coupling.groups import Group
from onnxprune.distillation.distil import Distilled
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.model.runtime import Runtime
from onnxprune.report.records import ErrorCurve, GroupAccount, Provenance, TuningPoint, TuningRecord

_POINTS = 48
"""Points of an error curve, enough for a drawing 340 pixels wide."""


def _own_version() -> str:
    try:
        return version("onnxprune")
    except PackageNotFoundError:
        return "unknown"


# once: the metadata of an installed package is a file that is read and parsed
_VERSIONS = {
    "onnxprune": _own_version(),
    "onnxruntime": ort.__version__,
    "onnx": onnx.__version__,
    "onnx-ir": ir.__version__,
    "numpy": np.__version__,
}
_CHUNK = 1 << 20


def accounts_of(
    groups: Sequence[Group], removed: Mapping[str, int], ranked: Sequence[RankedGroup]
) -> tuple[GroupAccount, ...]:
    """Account for every group of a model.

    Args:
        groups: all of them.
        removed: number of removed units, by name of the group.
        ranked: groups with their removal orders; those that were not ranked are missing.
    """
    orders = {order.group.name: order for order in ranked}
    accounts = []
    for number, group in enumerate(groups):
        kept = group.size - removed.get(group.name, 0)
        order = orders.get(group.name)
        curve = None if order is None else _curve(order, kept)
        readers = dict.fromkeys(reading.consumer.node for reading in group.readings)
        accounts.append(
            GroupAccount(number, group.name, group.kind, group.size, kept, tuple(readers), curve)
        )
    return tuple(accounts)


def _curve(order: RankedGroup, kept: int) -> ErrorCurve | None:
    """Summed scores along a removal order."""
    if not order.steps:
        return None
    group = order.group
    units = set(group.units.tolist())
    removed = np.cumsum([sum(unit in units for unit in step.units) for step in order.steps])
    widths = np.concatenate([[group.size], group.size - removed])
    errors = np.concatenate([[0.0], np.cumsum([step.score for step in order.steps])])
    # widths fall, and numpy interpolates over what rises
    chosen = float(np.interp(kept, widths[::-1], errors[::-1]))
    shown = min(_POINTS, len(widths))
    places = np.unique(np.linspace(0, len(widths) - 1, shown).round().astype(int))
    return ErrorCurve(
        tuple(int(width) for width in widths[places]),
        tuple(float(error) for error in errors[places]),
        chosen,
    )


def tuning_of(tuned: Distilled, teacher: str = "the original") -> TuningRecord:
    """Account for a fine-tuning.

    Args:
        tuned: what it came to.
        teacher: what the model was to answer as: a path, or words.
    """
    course = tuned.course
    return TuningRecord(
        teacher=teacher,
        points=tuple(TuningPoint(**vars(point)) for point in course.points),
        best=course.best,
        steps=tuned.steps,
        stopped=course.stopped,
        rate=course.rate,
        probes=dict(course.probes),
        skipped=course.skipped,
        batch=tuned.batch,
        samples=tuned.samples,
        features=tuned.features,
        views=tuned.views,
        learnt=tuned.learnt,
        moved=dict(tuned.moved),
        frozen=dict(tuned.frozen),
        blocks=tuned.blocks,
    )


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
    system = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    known = machine(runtime)
    return Provenance(
        model=str(path) if path is not None else "",
        sha256=sha256,
        options=dict(options),
        versions=_VERSIONS | system,
        machine={
            "processor": processor_name(),
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
