"""The account of a run: numbers before and after, certificate, refusals."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.latency.cache import machine
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.groups import Group, Refused
from onnxprune.importance.ranked import RankedGroup
from onnxprune.model.runtime import Runtime
from onnxprune.report.figures import share
from onnxprune.report.network.network import Network
from onnxprune.verification.certificate import Certificate
from onnxprune.verification.comparison import OutputComparison
from onnxprune.verification.quality import Quality


@dataclass(frozen=True)
class Sizes:
    """What a model costs.

    Attributes:
        params: elements of floating-point constants and of quantised weights.
        macs: multiply-accumulates for one run at the traced size.
        bytes: size of the serialised model, external data included.
        weights: bytes of its constants.
        activations: most bytes of activations alive at one time, at the traced size.
        memory: weights + activations.
        extents: the traced size: rows of the first input as "batch", then by name the extent of
            every other axis of an input that the model leaves open.
    """

    params: int
    macs: int
    bytes: int
    weights: int
    activations: int
    memory: int
    extents: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
        original: costs before.
        result: costs after.
        batch: rows of the feed that `macs` and `latency` refer to.
        certificate: the proof of the surgery.
        outputs: outputs of result and original compared on the calibration samples; empty without.
        latency: measured in alternation; None when it was not.
        padding: channels that a kernel computes together -> MACs of the cut convolutions with
            widths rounded up to whole blocks over those without; empty where none was cut.
        widths: per group name its size before and after.
        groups: every group of the model with its error curve, those left whole too.
        inexact: names of cut groups whose normalisation statistics run over fewer entries now.
        refused: axes that cannot be cut.
        dropped: groups left whole because the graph could not follow, with the reason.
        repairs: what became of the layers that were to be solved anew.
        allocation: name of the way the removal was spread over the groups.
        trials: divergence of the outputs for each way that was tried.
        blocks: sums that lost their residual branch.
        depths: number of blocks gone -> divergence of the outputs, for each number that was tried.
        quality: of original and result on samples, when labels, a metric or a limit were given.
        note: what was done differently from what was asked, empty for nothing.
        seconds: duration of the run.
        provenance: versions, machine, options and the original's digest.
        network: the layers and their widths, for the picture; not part of the JSON.
    """

    original: Sizes
    result: Sizes
    batch: int
    certificate: Certificate
    outputs: tuple[OutputComparison, ...]
    latency: Latency | None
    padding: dict[int, float]
    widths: dict[str, tuple[int, int]]
    inexact: tuple[str, ...]
    refused: tuple[Refused, ...]
    dropped: dict[str, str]
    repairs: tuple[LayerFit, ...]
    allocation: str
    trials: dict[str, float]
    quality: Quality | None
    note: str
    seconds: float
    groups: tuple[GroupAccount, ...] = ()
    provenance: Provenance | None = None
    network: Network | None = None
    blocks: tuple[str, ...] = ()
    depths: dict[int, float] = field(default_factory=dict)

    def to_html(self, *, command: Sequence[str] = (), model_file: str | Path | None = None) -> str:
        """Return one self-contained HTML page.

        Args:
            command: the words of the command line that made it; empty for none.
            model_file: where the result was saved; its digest is shown then.

        Raises:
            OSError: when that file cannot be read.
        """
        from onnxprune.report.run_page import run_page

        return run_page(self, command=command, model_file=model_file)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = asdict(replace(self, network=None))
        del data["network"]
        data["certificate"]["holds"] = self.certificate.holds
        data["quality"] = None if self.quality is None else self.quality.to_dict()
        return data


_POINTS = 48


@dataclass(frozen=True)
class ErrorCurve:
    """What a group costs at every width, thinned out to what a drawing shows.

    Attributes:
        kept: units that are left, the whole group first.
        error: what that costs: with error curves the part of the variance of the readers' outputs
            that is lost although their weights are solved anew, added up over the readers;
            else the summed scores of the criterion.
        chosen: error at the width that was chosen.
    """

    kept: tuple[int, ...]
    error: tuple[float, ...]
    chosen: float


@dataclass(frozen=True)
class GroupAccount:
    """One group of removable units.

    Attributes:
        number: its place among the groups of the model, from 0.
        name: its id, as in the plan.
        kind: channel, head, ...
        size: units before.
        kept: units after.
        readers: nodes that read it.
        curve: None where nothing was ranked, as when a plan is replayed.
    """

    number: int
    name: str
    kind: str
    size: int
    kept: int
    readers: tuple[str, ...]
    curve: ErrorCurve | None = None


def accounts_of(
    groups: Sequence[Group], removed: Mapping[str, int], ranked: Sequence[RankedGroup]
) -> tuple[GroupAccount, ...]:
    """Account for every group of a model.

    Args:
        groups: all of them.
        removed: units that went, by name of the group.
        ranked: groups with their removal orders; those that were not ranked are missing.
    """
    orders = {one.group.name: one for one in ranked}
    found = []
    for number, group in enumerate(groups):
        kept = group.size - removed.get(group.name, 0)
        order = orders.get(group.name)
        curve = None if order is None else _curve(order, kept)
        readers = dict.fromkeys(reading.consumer.node for reading in group.readings)
        found.append(
            GroupAccount(number, group.name, group.kind, group.size, kept, tuple(readers), curve)
        )
    return tuple(found)


def _curve(order: RankedGroup, kept: int) -> ErrorCurve | None:
    """Summed scores along a removal order."""
    if not order.steps:
        return None
    group = order.group
    units = set(group.units.tolist())
    gone = np.cumsum([sum(one in units for one in step.units) for step in order.steps])
    widths = np.concatenate([[group.size], group.size - gone])
    errors = np.concatenate([[0.0], np.cumsum([step.score for step in order.steps])])
    # widths fall, and numpy interpolates over what rises
    chosen = float(np.interp(kept, widths[::-1], errors[::-1]))
    shown = min(_POINTS, len(widths))
    places = np.unique(np.linspace(0, len(widths) - 1, shown).round().astype(int))
    return ErrorCurve(
        tuple(int(one) for one in widths[places]),
        tuple(float(one) for one in errors[places]),
        chosen,
    )


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


@dataclass(frozen=True)
class Study:
    """What every result of a study was measured with.

    Attributes:
        model: sha256 of the model file.
        samples: sha256 of the calibration samples.
        options: how it is pruned, without the target, and what else decides the results.
        versions: of the libraries the results depend on.
    """

    model: str
    samples: str
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def differences(self, other: Study) -> list[str]:
        """Names of what differs from another study; empty when results may be mixed."""
        found = [
            name for name in ("model", "samples") if getattr(self, name) != getattr(other, name)
        ]
        for mine, theirs in ((self.options, other.options), (self.versions, other.versions)):
            names = [*mine, *(name for name in theirs if name not in mine)]
            found += [name for name in names if mine.get(name) != theirs.get(name)]
        return found


_COUNTED = {"params": "params", "macs": "macs", "size": "bytes", "memory": "memory"}
"""Kind of target -> figure of a model that it is a fraction of."""


@dataclass(frozen=True)
class SweepPoint:
    """One budget.

    Attributes:
        target: kind -> fraction of the original that was to remain.
        status: "done", "unreachable", or "failed" when no result could be verified.
        reason: why there is no result; empty where there is one.
        original: costs of the original.
        result: costs of the result; empty where there is none, like all that follows.
        channels: fraction of the units of all groups that is left.
        latency: seconds of `original` and `result`, `ratio` with the interval `low` to `high`;
            None when it was not measured.
        outputs: by output agreement, cosine, relative error and signal to noise in dB, compared
            on the samples.
        divergence: of the outputs from the original's on the samples that judge trials; infinite
            for outputs that are not finite, None where there is no result.
        quality: of original and result (`original`, `result`, `drop` in the unit of `measure`,
            over a number of `samples`); None without labels.
        seconds: what the point took.
        file: name of its model in the folder of the sweep; None when it was not saved.
        widths: by group the units before and after, of the groups that lose any.
        baseline: criterion of a baseline; empty for the sweep's own points.
        run: the result itself, while it is in memory.
    """

    target: Mapping[str, float]
    status: str = "done"
    reason: str = ""
    original: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    channels: float | None = None
    latency: Mapping[str, Any] | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    divergence: float | None = None
    quality: Mapping[str, Any] | None = None
    seconds: float = 0.0
    file: str | None = None
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    baseline: str = ""
    run: Any = None

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status == "done"

    def remains(self, kind: str) -> float:
        """Fraction of a cost that is left.

        Args:
            kind: that of a target; where it was not counted or measured, the fraction asked for.
        """
        before, after = self.original or {}, self.result or {}
        name = _COUNTED.get(kind, kind)
        measured: float | None = None
        if name in before and name in after:
            measured = share(after[name], before[name]) if before[name] else 1.0
        elif kind == "latency" and self.latency is not None:
            measured = self.latency["ratio"]
        elif kind == "channels":
            measured = self.channels
        return measured if measured is not None else self.target.get(kind, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data = {name: value for name, value in vars(self).items() if name != "run"}
        return data | {
            "target": dict(self.target),
            "outputs": [dict(one) for one in self.outputs],
            "widths": {name: list(sizes) for name, sizes in self.widths.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SweepPoint:
        """Read what `to_dict` gave, from JSON."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        widths = {name: (int(a), int(b)) for name, (a, b) in data.get("widths", {}).items()}
        outputs = tuple(data.get("outputs", ()))
        point = cls(**known | {"outputs": outputs, "widths": widths})
        # JSON has no infinity
        lost = point.done and point.divergence is None
        return replace(point, divergence=math.inf) if lost else point


@dataclass(frozen=True)
class GroupCut:
    """A group cut to one fraction, everything else whole.

    Attributes:
        keep: fraction of the units that was to remain.
        units: how many remain, the nearest that is legal.
        divergence: of the model's outputs from the original's on samples that were not fitted;
            infinite for outputs that are not finite, None where it could not be built.
        saved: by kind (params, macs) what the cut saves of the model.
        reason: why it could not be built; empty where it was.
    """

    keep: float
    units: int
    divergence: float | None
    saved: Mapping[str, int]
    reason: str = ""


@dataclass(frozen=True)
class GroupSensitivity:
    """One group.

    Attributes:
        group: its name.
        kind: channel, head, ...
        units: how many there are.
        cuts: one for each fraction; empty where nothing can go.
        reason: why nothing can go; empty where something can.
    """

    group: str
    kind: str
    units: int
    cuts: tuple[GroupCut, ...] = ()
    reason: str = ""

    @property
    def worst(self) -> float:
        """Largest divergence of the cuts that were measured, 0 where none was."""
        measured = [one.divergence for one in self.cuts if one.divergence is not None]
        return max(measured, default=0.0)


@dataclass(frozen=True)
class StepReport:
    """The model after one pass, compared with what the pipeline was given.

    Attributes:
        name: of the pass.
        options: what was set.
        seconds: the pass itself took.
        modified: whether it changed anything.
        sizes: what the model costs now.
        outputs: on the samples; of the reference and of this model.
        latency: measured in alternation with the model that the pipeline was given; None where it
            was not.
        new_interface: inputs or outputs are others now, as this pass announces; from here on the
            model it made is the reference.
        details: what the pass tells of itself, for JSON.
        remark: what it has to say to people.
        notes: what was done differently from what was set, and why.
        files: suffix -> text of files that belong beside the model.
        plan: from which the pass can be repeated without choosing anew; None where there is none.
        report: full account of a pass that prunes, against the model it was given; None for other
            passes. Not part of the JSON.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    modified: bool
    sizes: Sizes
    outputs: tuple[OutputComparison, ...] = ()
    latency: Latency | None = None
    new_interface: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, Any] | None = None
    report: Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "pass": self.name,
            "options": dict(self.options),
            "seconds": self.seconds,
            "modified": self.modified,
            "new_interface": self.new_interface,
            "sizes": vars(self.sizes),
            "outputs": [one.to_dict() for one in self.outputs],
            "latency": vars(self.latency) if self.latency is not None else None,
            "remark": self.remark,
            "notes": list(self.notes),
            "details": dict(self.details),
        }
