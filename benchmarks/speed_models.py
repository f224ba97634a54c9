"""The work that `speed.py` times: seeded models of real size, their samples, and what is asked.

Residual networks by the published widths with He-scaled weights and BatchNormalization folded,
whose branches add a little each, as those of trained networks do; smooth random images; random
tokens. A trained ResNet-20 and the sentence encoder of `quality.py` are taken where they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from chain_models import KINDS
from latency_models import Builder, bert_base
from quality_subjects import cifar

BRANCH = 0.3
"""Scale of what a residual branch adds."""


class Missing(Exception):
    """A file that the row needs is not there; the message says which and how to get it."""


@dataclass(frozen=True)
class Sources:
    """Where files are.

    Attributes:
        scratch: what is made here goes there.
        cache: of `quality.py`, with the sentence encoder.
        cifar: with resnet20.onnx and calibration.npz.
    """

    scratch: Path
    cache: Path
    cifar: Path


Files = tuple[Path, Path | None]
"""A model and an .npz file of samples; None without."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        text: what is done.
        make: writes the model and the samples.
        targets: one for `prune`, several for `sweep`; none for a command.
        goal: seconds aimed at, by the number of threads.
        base: row to compare with.
        ratio: times the base aimed at; None for none.
        command: arguments of the interpreter, instead of a model.
        threaded: whether it is worth measuring with several threads.
    """

    text: str
    make: Callable[[Sources], Files] | None = None
    targets: Sequence[Mapping[str, float]] = ({"macs": 0.5},)
    goal: Mapping[int, float] = field(default_factory=dict)
    base: str = ""
    ratio: float | None = None
    command: Sequence[str] = ()
    threaded: bool = True


def residual_network(
    widths: Sequence[int], blocks: Sequence[int], pixels: int, *, stem: int = 3, expansion: int = 1
) -> onnx.ModelProto:
    """A residual network for images.

    Args:
        widths: of the stages; the first keeps the size, every other halves it.
        blocks: of each stage.
        pixels: height and width of the images.
        stem: kernel of the first convolution; with 7 it has a stride of two and a pooling behind.
        expansion: 1 for blocks of two 3 x 3 convolutions, else for bottlenecks so many times as
            wide outside.
    """
    b = Builder()
    x, width = str(b.add("Relu", b.conv("x", 3, widths[0], stem, 2 if stem == 7 else 1))), widths[0]
    if stem == 7:
        x = str(b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4))
    for number, (inner, repeats) in enumerate(zip(widths, blocks, strict=True)):
        for repeat in range(repeats):
            stride, outer = (2 if number and not repeat else 1), inner * expansion
            if expansion == 1:
                y = str(b.add("Relu", b.conv(x, width, inner, 3, stride)))
                y = b.conv(y, inner, outer, 3)
            else:
                y = str(b.add("Relu", b.conv(x, width, inner)))
                y = str(b.add("Relu", b.conv(y, inner, inner, 3, stride)))
                y = b.conv(y, inner, outer)
            y = str(b.add("Mul", y, b.constant(np.float32(BRANCH))))
            x = x if width == outer and stride == 1 else b.conv(x, width, outer, 1, stride)
            x, width = str(b.add("Relu", b.add("Add", x, y))), outer
    x = str(b.add("Flatten", b.add("GlobalAveragePool", x)))
    head = b.weight(width, 10, inputs=width)
    y = str(b.add("Gemm", x, head, b.constant(np.zeros(10, np.float32))))
    return b.model({"x": (onnx.TensorProto.FLOAT, ["n", 3, pixels, pixels])}, y)


def smooth_images(count: int, pixels: int, rng: np.random.Generator) -> Any:
    """Noise of periods of an eighth of the image and more, float32 [count, 3, pixels, pixels]."""
    places = np.linspace(0, 8, pixels, endpoint=False)
    left, share = places.astype(int), (places % 1).astype(np.float32)
    spread = np.zeros((pixels, 9), np.float32)
    spread[np.arange(pixels), left] = 1 - share
    spread[np.arange(pixels), left + 1] = share
    coarse = rng.standard_normal((count, 3, 9, 9), np.float32)
    return spread @ coarse @ spread.T + 0.1 * rng.standard_normal(
        (count, 3, pixels, pixels), np.float32
    )


def written(
    sources: Sources, name: str, model: Callable[[], onnx.ModelProto], samples: Callable[[], Any]
) -> Files:
    """Write a model with one input and its samples to the scratch folder, once."""
    path, data = sources.scratch / f"{name}.onnx", sources.scratch / f"{name}.npz"
    if not data.exists():
        proto = model()
        onnx.save(proto, path)
        np.savez(data, **{proto.graph.input[0].name: samples()})
    return path, data


def resnet20(sources: Sources) -> Files:
    """ResNet-20 and 1,024 images; trained where the files are there."""
    if (sources.cifar / "resnet20.onnx").exists():
        subject = cifar(sources.cifar, sources.scratch)[0]
        return subject.model, subject.calibration
    return written(
        sources,
        "resnet20",
        lambda: residual_network((16, 32, 64), (3, 3, 3), 32),
        lambda: smooth_images(1024, 32, np.random.default_rng(1)),
    )


def residual(sources: Sources) -> Files:
    """25 convolutions, 64 to 256 wide, and 64 images of 56 x 56."""
    return written(
        sources,
        "residual",
        lambda: residual_network((64, 128, 256), (4, 4, 3), 56),
        lambda: smooth_images(64, 56, np.random.default_rng(1)),
    )


def resnet50(sources: Sources) -> Files:
    """ResNet-50 and 256 images of 224 x 224."""
    return written(
        sources,
        "resnet50",
        lambda: residual_network((64, 128, 256, 512), (3, 4, 6, 3), 224, stem=7, expansion=4),
        lambda: smooth_images(256, 224, np.random.default_rng(1)),
    )


def bert(sources: Sources) -> Files:
    """BERT-base and 128 texts of 128 random tokens."""
    return written(
        sources,
        "bert",
        lambda: bert_base("n"),
        lambda: np.random.default_rng(1).integers(0, 30522, (128, 128)),
    )


def minilm(sources: Sources) -> Files:
    """The sentence encoder all-MiniLM-L6-v2 and 512 sentences."""
    files = sources.cache / "minilm.onnx", sources.cache / "minilm_calibration.npz"
    if not all(path.exists() for path in files):
        raise Missing(f"no {files[0]}: benchmarks/quality.py --subject encoder makes it")
    return files


def chain(text: str, kind: str, count: int, **fields: Any) -> Row:
    """A row that prunes a chain of `chain_models.py`, without samples."""

    def make(sources: Sources) -> Files:
        path = sources.scratch / f"{kind}{count}.onnx"
        if not path.exists():
            onnx.save(KINDS[kind](count), path)
        return path, None

    return Row(text, make, ({"params": 0.6},), threaded=False, **fields)


def command(text: str, *words: str, goal: Mapping[int, float]) -> Row:
    """A row that starts the interpreter."""
    return Row(text, targets=(), goal=goal, command=words, threaded=False)


SWEEP = tuple({"macs": share} for share in (0.8, 0.7, 0.6, 0.5, 0.4))

ROWS: dict[str, Row] = {
    "resnet20": Row("ResNet-20, 1,024 images", resnet20, goal={1: 10}),
    "sweep": Row("  five budgets instead of one", resnet20, SWEEP, base="resnet20", ratio=2),
    "residual": Row("25 convolutions, 64 images", residual, goal={1: 30}),
    "latency": Row(
        "  latency=0.5 instead of macs", residual, ({"latency": 0.5},), base="residual", ratio=1.3
    ),
    "resnet50": Row("ResNet-50, 224, 256 images", resnet50, goal={2: 60}),
    "bert": Row("BERT-base, 128 x 128 tokens", bert, goal={2: 100}),
    "minilm": Row("MiniLM, 512 sentences", minilm, goal={1: 25}),
    "chain4000": chain("chain, 4,000 nodes", "cnn", 4000),
    "chain16000": chain("  16,000 nodes", "cnn", 16000, goal={1: 20}, base="chain4000", ratio=4),
    "dense4000": chain("dense chain, 121 layers", "dense", 4000),
    "dense8000": chain("  242 layers", "dense", 8000, base="dense4000", ratio=2),
    "import": command("import onnxprune", "-c", "import onnxprune", goal={1: 0.1}),
    "help": command("onnxprune --help", "-m", "onnxprune", "--help", goal={1: 0.2}),
}
"""By the names that `--rows` takes."""
