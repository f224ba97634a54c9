"""Plain data of everything that pages and tables show.

The public classes with methods (`Report`, `PruneResult`, `Sweep`, ...) extend these records where
they are made: in `pruning/` and `passes/pipeline/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.figures import NodeCost
from onnxprune.cost.kinds import FIGURES
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.groups import Group, Refused
from onnxprune.report.figures import share
from onnxprune.report.network.network import Network
from onnxprune.verification.certificate import Certificate
from onnxprune.verification.comparison import OutputComparison
from onnxprune.verification.quality import Quality

if TYPE_CHECKING:
    from typing_extensions import Self


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
class TuningPoint:
    """A check-point of a training.

    Attributes:
        step: number of steps before it.
        fitted: mean loss on the samples trained on since the check-point before; None at the start.
        held_out: divergence from the teacher, plus the loss of labels where these were learnt, on
            samples that were not trained on.
    """

    step: int
    fitted: float | None
    held_out: float


@dataclass(frozen=True)
class TuningRecord:
    """How the weights of a model were fine-tuned, and what that came to.

    Attributes:
        teacher: what the model was to answer as: a path, or words.
        points: check-points, the start first.
        best: step of the check-point that was kept; 0 for the start, where none was better.
        steps: number of steps planned.
        stopped: step at which the user stopped it; None for the end.
        rate: learning rate; 0 where no rate was any use.
        probes: by learning rate, the divergence after a few steps; empty where the rate was known.
        skipped: steps that were left out because gradients were not finite.
        batch: samples of a step.
        samples: trained on.
        features: tensors inside that were compared with the teacher's.
        views: of samples that were drawn.
        learnt: what the loss was made of: `teacher`, `labels`, or both.
        moved: by name of a weight, the root mean square of its change over that of the weight.
        frozen: by name of a weight that stayed as it was, why.
        blocks: tensors that the model was cut at, to be trained block by block; empty where it was
            trained as a whole.
    """

    teacher: str
    points: tuple[TuningPoint, ...]
    best: int
    steps: int
    stopped: int | None
    rate: float
    probes: Mapping[float, float]
    skipped: int
    batch: int
    samples: int
    features: tuple[str, ...]
    views: tuple[str, ...]
    learnt: tuple[str, ...]
    moved: Mapping[str, float]
    frozen: Mapping[str, str]
    blocks: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """What check-points are compared by, on held-out samples, at the start."""
        return self.points[0].held_out

    @property
    def after(self) -> float:
        """The same at the check-point that was kept."""
        return next(point.held_out for point in self.points if point.step == self.best)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"before": self.before, "after": self.after, **asdict(self)}


@dataclass(frozen=True)
class PruneRecord:
    """Data of `onnxprune.Report`, where the fields are described."""

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
    missed: str = ""
    warnings: tuple[str, ...] = ()
    unfolded: dict[str, str] = field(default_factory=dict)
    estimated: dict[str, str] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()
    cut_inputs: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = field(
        default_factory=dict
    )
    inlined: dict[str, str] = field(default_factory=dict)
    tuning: TuningRecord | None = None


@dataclass(frozen=True)
class ErrorCurve:
    """Error of a group at every width, thinned out for drawing.

    Attributes:
        kept: units kept, the whole group first.
        error: for the criterion reconstruction the fraction of the variance of the consumers'
            outputs that is lost after their weights are re-fitted, summed over the consumers;
            for others the summed scores of the removed units.
        chosen: error at the chosen width.
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
        differing = [
            name for name in ("model", "samples") if getattr(self, name) != getattr(other, name)
        ]
        for mine, theirs in ((self.options, other.options), (self.versions, other.versions)):
            names = [*mine, *(name for name in theirs if name not in mine)]
            differing += [name for name in names if mine.get(name) != theirs.get(name)]
        return differing


@dataclass(frozen=True)
class SweepPointRecord:
    """One budget of a sweep.

    Attributes:
        target: kind -> fraction of the original asked for.
        status: "done", "unreachable", or "failed" when no result could be verified.
        reason: why there is no result; empty where there is one.
        original: costs of the original.
        result: costs of the result; empty where there is none, like all that follows.
        channels: fraction of the units of all groups that is kept.
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
        name = FIGURES.get(kind, kind)
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
        data = {field.name: getattr(self, field.name) for field in fields(SweepPointRecord)}
        return data | {
            "target": dict(self.target),
            "outputs": [dict(output) for output in self.outputs],
            "widths": {name: list(sizes) for name, sizes in self.widths.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave, from JSON."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        widths = {name: (int(a), int(b)) for name, (a, b) in data.get("widths", {}).items()}
        outputs = tuple(data.get("outputs", ()))
        point = cls(**known | {"outputs": outputs, "widths": widths})
        # JSON has no infinity
        lost = point.done and point.divergence is None
        return replace(point, divergence=math.inf) if lost else point


@dataclass(frozen=True)
class SweepRecord:
    """Data of `onnxprune.Sweep`, where the fields are described."""

    study: Study
    points: tuple[SweepPointRecord, ...] = ()
    baselines: tuple[SweepPointRecord, ...] = ()
    source: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of cost that the targets are about."""
        return tuple(dict.fromkeys(kind for point in self.points for kind in point.target))

    def pareto(self) -> tuple[SweepPointRecord, ...]:
        """Points that no other beats: none diverges less at the same costs or fewer."""
        done = [point for point in self.points if point.done]
        keys = [
            (_divergence(point), *(point.remains(kind) for kind in self.kinds)) for point in done
        ]
        return tuple(
            point
            for point, key in zip(done, keys, strict=True)
            if not any(_beats(other, key) for other in keys)
        )


def _divergence(point: SweepPointRecord) -> float:
    return math.inf if point.divergence is None else point.divergence


def _beats(first: Iterable[float], second: Iterable[float]) -> bool:
    """Whether the first is nowhere worse, and somewhere better."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@dataclass(frozen=True)
class GroupCut:
    """One group cut to a fraction of its units, all others uncut.

    Attributes:
        keep: fraction of the units asked for.
        units: how many are kept, the nearest legal width.
        divergence: of the model's outputs from the original's on held-out samples;
            infinite for outputs that are not finite, None where it could not be built.
        saved: by kind (params, macs) what the cut saves of the model.
        reason: why it could not be built; empty where it was.
        drop: of the quality, in the unit of the measure; None where that was not measured.
    """

    keep: float
    units: int
    divergence: float | None
    saved: Mapping[str, int]
    reason: str = ""
    drop: float | None = None


@dataclass(frozen=True)
class GroupSensitivity:
    """One group.

    Attributes:
        group: its name.
        kind: channel, head, ...
        units: how many there are.
        cuts: one for each fraction; empty where no unit can be removed.
        reason: why no unit can be removed; empty where one can.
    """

    group: str
    kind: str
    units: int
    cuts: tuple[GroupCut, ...] = ()
    reason: str = ""

    @property
    def worst(self) -> float:
        """Largest drop of quality, or else divergence, of the cuts; 0 where none was measured."""
        drops = [cut.drop for cut in self.cuts if cut.drop is not None]
        if drops:
            return max(drops)
        measured = [cut.divergence for cut in self.cuts if cut.divergence is not None]
        return max(measured, default=0.0)


@dataclass(frozen=True)
class SensitivityRecord:
    """Data of `onnxprune.Sensitivity`, where the fields are described."""

    study: Study
    costs: Mapping[str, int]
    groups: tuple[str, ...]
    rows: tuple[GroupSensitivity, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of groups that have no row yet."""
        measured = {row.group for row in self.rows}
        return tuple(name for name in self.groups if name not in measured)

    def ranked(self) -> tuple[GroupSensitivity, ...]:
        """Rows by their worst cut, the most sensitive group first."""
        return tuple(sorted(self.rows, key=lambda row: -row.worst))


@dataclass(frozen=True)
class StepReport:
    """The model after one pass, compared with the original of the pipeline.

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
        details: facts of the pass, for JSON.
        remark: a sentence for people.
        notes: what was done differently from what was set, and why.
        files: suffix -> text of files that belong beside the model.
        plan: from which the pass can be repeated; None where it has none.
        report: full account of a pass that prunes, against the model it was given; None for other
            passes. Not part of the JSON.
        warnings: what may make the result worthless, each with the next step; what is odd about
            the samples is with the first pass.
        quality: against the original of the pipeline, where it was measured.
        missed: what of a limit or target was not met, with best effort; empty for nothing.
        tuning: of a pass that fine-tunes; None for others.
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
    report: PruneRecord | None = None
    warnings: tuple[str, ...] = ()
    quality: Quality | None = None
    missed: str = ""
    tuning: TuningRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "pass": self.name,
            "options": dict(self.options),
            "seconds": self.seconds,
            "modified": self.modified,
            "new_interface": self.new_interface,
            "sizes": vars(self.sizes),
            "outputs": [output.to_dict() for output in self.outputs],
            "latency": self.latency.to_dict() if self.latency is not None else None,
            "remark": self.remark,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "details": dict(self.details),
            "quality": None if self.quality is None else self.quality.to_dict(),
            "missed": self.missed,
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
        }


@dataclass(frozen=True)
class PipelineRecord:
    """What a pipeline did.

    Attributes:
        original: what the model cost at first.
        steps: one report for each pass.
        provenance: versions, machine, seed and the original's digest.
    """

    original: Sizes
    steps: tuple[StepReport, ...]
    provenance: Provenance | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may make the result worthless, each with the next step."""
        return tuple(dict.fromkeys(text for step in self.steps for text in step.warnings))

    @property
    def missed(self) -> str:
        """What of a limit or target was not met, with best effort; empty for nothing."""
        return "; ".join(step.missed for step in self.steps if step.missed)


@dataclass(frozen=True)
class InspectionRecord:
    """Data of `onnxprune.Inspection`, where the fields are described."""

    sizes: Sizes
    batch: int
    nodes: tuple[NodeCost, ...]
    groups: tuple[Group, ...]
    refused: tuple[Refused, ...]
    network: Network


@dataclass(frozen=True)
class ComparisonRecord:
    """Data of `onnxprune.Comparison`, where the fields are described."""

    outputs: tuple[OutputComparison, ...]
    original: Sizes
    pruned: Sizes
    warnings: tuple[str, ...] = ()
    quality: Quality | None = None
