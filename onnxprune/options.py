"""The options of a run: every option is declared here, once, as a field of `PruneOptions`.

The checks of the API, the flags of the command line, what plans record, the JSON schema of pipeline
files and the table in docs/reference.md are made from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxprune.declaration import Option, declared_options, option, read_options
from onnxprune.errors import InputError, nearest
from onnxprune.model.runtime import Runtime

LATENCY = "latency"
"""The target that is measured, not counted."""

SIZE = "size"
"""The target whose count is a forecast until there is a file."""

PARAMS = "params"
"""The target that biases count for which compensation adds."""

HIDDEN = "hidden"
"""The normalised axes that are cut by default."""

TARGETS = ("channels", PARAMS, "macs", SIZE, "memory", LATENCY)
COMPENSATIONS = ("none", "mean", "least-squares")
ALLOCATIONS = ("auto", "uniform", "global")
AUGMENTATIONS = ("flip", "shift", "crop", "splice")
EFFORTS = ("low", "normal", "high")


def check_targets(target: Mapping[str, float]) -> dict[str, float]:
    """Return targets as floats.

    Raises:
        InputError: for an unknown kind, or a fraction that is not above 0 and at most 1.
    """
    if not isinstance(target, Mapping):
        raise InputError(f"target must be a mapping such as {{'macs': 0.5}}, not {target!r}")
    if not target:
        raise InputError(f"no target; give one of {', '.join(TARGETS)}, such as macs=0.5")
    checked = {}
    for kind, fraction in target.items():
        if kind not in TARGETS:
            raise InputError(f"unknown target {kind!r}{nearest(str(kind), TARGETS)}")
        try:
            value = float(fraction)
        except (TypeError, ValueError):
            raise InputError(f"target {kind}={fraction!r} is not a number") from None
        if not 0 < value <= 1:
            raise InputError(
                f"target {kind}={fraction} is out of range: it is the fraction that remains, above "
                "0 and at most 1"
            )
        checked[kind] = value
    return checked


@dataclass(frozen=True)
class PruneOptions:
    """What to remove, how to choose it and how to compensate for it.

    The attributes are documented where they are declared.
    """

    target: Mapping[str, float] = option(
        {"channels": 0.5},
        "fraction of the original that remains, by kind: `channels`, `params`, `macs`, `size`, "
        "`memory` or `latency`; several are all met. Default: channels=0.5, or with `max_drop` the "
        "smallest model within that limit",
        metavar="KIND=FRACTION",
        check=check_targets,
        optional=True,
    )
    criterion: str = option(
        "l2",
        "how units are ranked: `l1`, `l2`, `redundancy` or `random`; with samples also "
        "`reconstruction`, `variance`, `std`, `activity`, `taylor` or `fisher`. Default: "
        "`reconstruction` with samples, else `l2`",
        metavar="NAME",
        with_samples="reconstruction",
    )
    compensate: str = option(
        "none",
        "`least-squares` re-fits the layers whose input or output is cut, `mean` folds the mean of "
        "removed units into biases, `none` leaves the other weights as they are. Default: "
        "`least-squares` with samples, else `none`",
        metavar="NAME",
        choices=COMPENSATIONS,
        with_samples="least-squares",
    )
    loss: str | Callable[..., Any] | None = option(
        None,
        "what the criteria `taylor` and `fisher` differentiate: `cross-entropy`, `mse` (labels are "
        "then targets), or a function of all outputs and the labels that returns the loss of each "
        "sample, or {output: gradient}; also as module.py:function. Default: `cross-entropy` for "
        "class scores, `mse` for other outputs. Labels that are missing are drawn from the model's "
        "own outputs",
        metavar="NAME",
    )
    allocation: str = option(
        "auto",
        "how the removal is spread over the model: `uniform`, `global` (by comparable scores), or "
        "`auto`, which tries several ways and keeps the one whose outputs diverge least from the "
        "original's on held-out samples",
        metavar="NAME",
        choices=ALLOCATIONS,
    )
    include: tuple[str, ...] = option(
        (),
        "name patterns (with * and ?); only groups with a matching tensor or node are pruned",
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = option(
        (),
        "name patterns (with * and ?); matching tensors, and those of matching nodes, are not "
        "pruned",
        metavar="PATTERN",
    )
    round_to: int | str = option(
        "auto",
        "every cut axis keeps a multiple of this many units: 8 or 16 suit the convolution kernels "
        "of CPUs, 1 allows any width, `auto` takes the steps measured on this machine where "
        "latency is a target, else 1",
        metavar="N",
        least=1,
        choices=("auto",),
    )
    normalised_axes: bool | str = option(
        HIDDEN,
        "whether axes that normalisation statistics run over are cut, removed entries counting as "
        "zeros: `hidden`, those of hidden layers where this is exact; true, all, such as the "
        "residual width of a transformer; false, none",
        choices=(HIDDEN,),
    )
    lossless: bool = option(
        True,
        "first remove units that are dead, constant or copies of others, which changes no output; "
        "not done with compensation `none`",
    )
    components: bool = option(
        True,
        "with `least-squares`, remove the least important components instead of units wherever "
        "only linear maps act on them: values of attention heads, queries and keys without rotary "
        "embedding, bottlenecks without activation",
    )
    augment: tuple[str, ...] = option(
        (),
        "views of calibration samples to fit on as well: `flip`, `shift`, `crop` of images that "
        "may be flipped, shifted and seen nearer, `splice` of sequences of tokens: one goes on as "
        "another. Fine-tuning chooses some by itself where none is named",
        metavar="VIEW[,VIEW]",
        choices=AUGMENTATIONS,
    )
    finetune: bool = option(
        False,
        "then train all weights on the samples so that the smaller model answers as the original "
        "does (distillation; no labels needed): it takes several times as long as pruning, and "
        "the best check-point on held-out samples is kept",
    )
    effort: int | str = option(
        "normal",
        "how long to fine-tune: `low`, `normal`, `high`, or a number of passes over the samples",
        metavar="EFFORT",
        least=1,
        choices=EFFORTS,
    )
    steps: int = option(
        1,
        "how many steps to prune in; after each, layers are re-fitted and units ranked again",
        metavar="N",
        least=1,
    )
    blocks: bool = option(
        False,
        "also replace whole residual branches by their mean, where outputs then diverge less on "
        "held-out samples than with narrower layers alone; needs samples and `least-squares`",
    )
    max_drop: float | None = option(
        None,
        "largest drop of quality allowed: of accuracy in percent with `labels`, of what `metric` "
        "returns, else of the agreement with the original in percent (same class; cosine of other "
        "outputs). Measured on every fourth sample, which nothing is fitted on",
        metavar="X",
        least=0,
    )
    seed: int = option(
        0,
        "seed of everything random; the same input, options and seed give the same bytes",
        metavar="N",
        least=0,
    )
    runtime: Runtime = field(default_factory=Runtime)

    @classmethod
    def read(cls, options: Mapping[str, Any], *, calibrated: bool) -> PruneOptions:
        """Check options as the functions of the API take them.

        Args:
            options: value by name, also of providers and threads; others are at their defaults.
            calibrated: whether there are samples.

        Raises:
            InputError: naming the option that cannot be used.
        """
        values = read_options((*OPTIONS, *RUNTIME_OPTIONS), options)
        for each in OPTIONS:
            if each.default is None and values.get(each.name) is None:
                values.pop(each.name, None)
                if calibrated and each.with_samples is not None:
                    values[each.name] = each.with_samples
        named = {
            each.name: values.pop(each.name) for each in RUNTIME_OPTIONS if each.name in values
        }
        runtime = Runtime(**named)
        runtime.validate()
        checked = cls(**values, runtime=runtime)
        if checked.blocks and not (calibrated and checked.compensate == "least-squares"):
            raise InputError(
                "blocks requires calibration samples (--calibration) and compensate=least-squares"
            )
        if checked.finetune and not calibrated:
            raise InputError("finetune trains on samples; give --calibration")
        if checked.blocks and "channels" in checked.target:
            raise InputError(
                "blocks cannot help with a target of channels, which every group meets by itself; "
                "use macs, params, size, memory or latency"
            )
        return checked

    @property
    def multiple(self) -> int:
        """What every axis that is cut keeps a multiple of without exception; 1 with auto."""
        return self.round_to if isinstance(self.round_to, int) else 1

    def to_dict(self) -> dict[str, Any]:
        """Return what plans record, as plain data; of a function, its name."""
        return {each.name: _plain(getattr(self, each.name)) for each in OPTIONS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], **changes: Any) -> PruneOptions:
        """Read what `to_dict` wrote.

        Args:
            data: value by name; plans of older versions may lack some.
            **changes: attributes with another value.

        Raises:
            InputError: when it is damaged.
        """
        written = _OLDER | {name: value for name, value in data.items() if value not in (None, {})}
        try:
            values = {
                each.name: each.read(written[each.name]) for each in OPTIONS if each.name in written
            }
        except InputError as error:
            raise InputError(f"the plan's options are damaged: {error}") from None
        return cls(**{**values, **changes})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else getattr(value, "__name__", value)


OPTIONS = declared_options(PruneOptions)
"""Options that say what is removed and how."""

STUDY_OPTIONS = tuple(each for each in OPTIONS if each.name not in ("target", "max_drop"))
"""Those that `sweep` and `sensitivity` take as well."""

RUNTIME_OPTIONS = declared_options(Runtime)
"""Options of every command that runs models."""

LABELS = Option(
    "labels",
    Any,
    None,
    "one label for each sample, for measuring quality and for `loss`: classes, or with a `metric` "
    "anything (boxes, masks, text), in an array, a list, .npy, .npz, .json, .jsonl or text file",
    metavar="FILE",
)
METRIC = Option(
    "metric",
    str | Callable[..., Any] | None,
    None,
    "what measures quality: `agreement`, `kappa`, `r2`, `topk`, `map` (detection), `iou` "
    "(segmentation), `perplexity` or `retrieval`; or a function of all outputs ({name: array "
    "[samples, ...]}), those of the original and the labels (None without), or of outputs and "
    "labels, whose result is higher for better answers, also as module.py:function",
    metavar="NAME",
)

BATCH = Option(
    "batch",
    int | None,
    None,
    "rows of the batch that latency is measured on, as where the model is to run; default: the two "
    "rows that MACs and memory refer to, or the number that the model fixes",
    metavar="N",
    least=1,
)

FORCE = Option(
    "force",
    bool,
    False,
    "write the result even where its answers no longer follow the original's: kappa of decisions "
    "below 0.6, or R squared of quantities below 0.5; from 128 samples on those compared were not "
    "fitted",
)

IMAGES = Option(
    "images",
    str | None,
    None,
    "the samples are images in a folder: size=WIDTHxHEIGHT, mean=, std= (one number, or one for "
    "each channel as in mean=0.485/0.456/0.406), scale=, rgb or bgr, stretch, crop or pad, NCHW or "
    "NHWC, count=; a pixel of 0 to 255 becomes (pixel * scale - mean) / std; size, layout and "
    "dtype are the model's unless given",
    metavar="KEY=VALUE[,...]",
)
TOKENIZER = Option(
    "tokenizer",
    str | None,
    None,
    "the samples are the lines of a text file: path of a Hugging Face tokenizer.json, then "
    "optionally length= (tokens of every text) and count=",
    metavar="FILE[,KEY=VALUE]",
)
AUDIO = Option(
    "audio",
    str | None,
    None,
    "the samples are .wav files in a folder: rate= (samples a second that the model takes), "
    "length= (samples in a window, unless the model fixes it) and count=",
    metavar="KEY=VALUE[,...]",
)
READERS = (IMAGES, TOKENIZER, AUDIO)
"""Options that say how the samples of every command are read, where they are no arrays."""
BEST_EFFORT = Option(
    "best_effort",
    bool,
    False,
    "with `max_drop`: where the limit, or the target within it, cannot be met, write the best that "
    "was found all the same; the report says so, and the exit code is still 3",
)

TEACHER = Option(
    "teacher",
    Any,
    None,
    "what the model is to answer as: the path of a model with the same inputs and outputs, such as "
    "the one it was pruned from, or a larger one. Default: the model that the pipeline was given; "
    "in the first pass, which only `labels` can then teach anything, the model itself",
    metavar="FILE",
)
PRUNING = Option(
    "pruning",
    str | Path | None,
    None,
    "path of the plan by which the model was cut from the teacher: what is left of a tensor inside "
    "is then compared with the teacher's as well",
    metavar="FILE",
)
EMBEDDINGS = Option(
    "embeddings", bool, False, "also train tables of embeddings, which a few samples hardly touch"
)
LEARNT = Option(
    "loss",
    str | Callable[..., Any] | None,
    None,
    "what is learnt of `labels`: `cross-entropy`, `mse` (labels are then targets), or a function "
    "of all outputs and the labels that returns the loss of each sample, or {output: gradient}; "
    "also as module.py:function. Default: `cross-entropy` for class scores, `mse` for others",
    metavar="NAME",
)


def _declared(name: str) -> Option:
    return next(each for each in OPTIONS if each.name == name)


FINETUNE_OPTIONS = (
    TEACHER,
    PRUNING,
    LABELS,
    LEARNT,
    _declared("effort"),
    _declared("augment"),
    EMBEDDINGS,
    METRIC,
)
"""Options of fine-tuning a model that is there already."""

_OLDER = {"normalised_axes": False, "target": {"channels": 1.0}, "criterion": "l2", "round_to": 1}
"""What plans meant that lack an option, where it is not the default."""


def share_text(share: float) -> str:
    """A share, or another number, with at most four significant digits."""
    return f"{share:.4g}"


def target_text(target: Mapping[str, float]) -> str:
    """Shares by kind, as a target is given on the command line: `macs=0.5, params=0.7`."""
    return ", ".join(f"{kind}={share_text(share)}" for kind, share in target.items())
