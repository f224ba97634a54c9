"""What `quality.py` prunes, and the judge of the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from quality_feeds import LABELS, RATE, batches, calibration, load_arrays
from quality_metrics import Measure, Outputs, class_maps, classes, detections, embeddings, voices

import onnxprune

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Subject:
    """A model with its samples.

    Attributes:
        name: how it is called in the tables.
        model: the ONNX file.
        calibration: .npz file of unlabelled inputs.
        test: .npz file of inputs that no pruner sees, with `labels` where there are any.
        budgets: fractions of the MACs that are to remain.
        goals: budget -> metric -> the value the project aims at.
        tuned_goals: the same with fine-tuning, by the number of calibration samples; None for all.
        few: calibration samples with which fine-tuning is measured as well; None for none.
        measure: the figures of its task.
        batch: test samples that are run at a time.
    """

    name: str
    model: Path
    calibration: Path
    test: Path
    budgets: tuple[float, ...] = (0.75, 0.5)
    goals: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    measure: Measure = classes
    batch: int = 100
    tuned_goals: Mapping[int | None, Mapping[float, Mapping[str, float]]] = field(
        default_factory=dict
    )
    few: int | None = None


def cifar(folder: Path, scratch: Path) -> list[Subject]:
    """ResNet-20 with 1024 calibration and 4000 test images."""
    for name in ("calibration", "test"):
        with np.load(folder / f"{name}.npz") as file:
            arrays = {"input": normalised(file["images"])}
            if "labels" in file.files:
                arrays[LABELS] = file["labels"].astype(np.int64)
        np.savez(scratch / f"cifar_{name}.npz", **arrays)
    goals = {0.75: 0.859, 0.6: 0.842, 0.5: 0.830, 0.35: 0.770}
    tuned = {0.75: 0.863, 0.6: 0.853, 0.5: 0.845, 0.35: 0.810}
    few = {0.75: 0.859, 0.6: 0.843, 0.5: 0.830, 0.35: 0.785}
    return [
        Subject(
            "resnet20",
            folder / "resnet20.onnx",
            scratch / "cifar_calibration.npz",
            scratch / "cifar_test.npz",
            (0.75, 0.6, 0.5, 0.35),
            _accuracies(goals),
            tuned_goals={None: _accuracies(tuned), 128: _accuracies(few)},
            few=128,
        )
    ]


def _accuracies(goals: Mapping[float, float]) -> dict[float, dict[str, float]]:
    return {budget: {"accuracy": accuracy} for budget, accuracy in goals.items()}


def normalised(images: Any) -> Any:
    """Network inputs float32 [n, 3, 32, 32] of images uint8 [n, 32, 32, 3]."""
    scaled = (images.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def small_models(folder: Path) -> list[Subject]:
    """The networks of models/."""
    samples = {
        "spirals_mlp": "spirals",
        "digits_mlp": "digits_mlp",
        "digits_resnet": "digits_resnet",
        "digits_resnet_bn": "digits_resnet",
        "digits_transformer": "digits_transformer",
    }
    return [
        Subject(
            name,
            folder / f"{name}.onnx",
            folder / f"{data}_calibration.npz",
            folder / f"{data}_test.npz",
        )
        for name, data in samples.items()
    ]


def encoder(cache: Path) -> list[Subject]:
    """all-MiniLM-L6-v2 as `quality_encoder.py` exported it."""
    tuned = {0.7: {"cosine": 0.98, "neighbour": 0.82}, 0.5: {"cosine": 0.955, "neighbour": 0.7}}
    return [
        Subject(
            "minilm",
            cache / "minilm.onnx",
            cache / "minilm_calibration.npz",
            cache / "minilm_test.npz",
            (0.7, 0.5),
            {0.7: {"cosine": 0.970, "neighbour": 0.76}, 0.5: {"cosine": 0.92, "neighbour": 0.64}},
            embeddings,
            tuned_goals={None: tuned},
        )
    ]


def detector(folder: Path, scratch: Path) -> list[Subject]:
    """A face detector with 256 calibration and 160 test photographs, all 320 x 240.

    `folder` holds slim-320.onnx, whose batch is one, and the images in fit/ and test/.
    """
    for name, images in (("calibration", "fit"), ("test", "test")):
        photographs = [photograph(path) for path in sorted((folder / images).glob("*.jpg"))]
        np.savez(scratch / f"faces_{name}.npz", input=np.stack(photographs))
    return [
        Subject(
            "slim-320",
            folder / "slim-320.onnx",
            scratch / "faces_calibration.npz",
            scratch / "faces_test.npz",
            (0.7, 0.5),
            {0.7: {"f1": 0.975}, 0.5: {"f1": 0.88}},
            detections,
            batch=1,
        )
    ]


def photograph(path: Path) -> Any:
    """The network input of an image file, RGB, float32 [3, height, width] from -1 to 1."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1))


TRAINED: Mapping[str, Measure] = {
    "segmentation": class_maps,
    "keywords": classes,
    "two-rates": voices,
}
"""The subjects that `train_subjects.py` makes."""


def trained(name: str, cache: Path) -> list[Subject]:
    """A subject as `train_subjects.py` made it."""
    files = (cache / f"{name}{end}" for end in (".onnx", "_calibration.npz", "_test.npz"))
    return [Subject(name, *files, (0.7, 0.5), measure=TRAINED[name])]


class DivergenceEvaluator:
    """Compares pruned models with the original on the test samples of a subject."""

    def __init__(self, subject: Subject, *, tests: int | None, threads: int) -> None:
        self.subject, self.threads = subject, threads
        with np.load(subject.test) as file:
            self.samples = {name: file[name][:tests] for name in file.files}
        self.labels: Any = self.samples.get(LABELS)
        self.feeds = batches(load_arrays(subject.test, tests), subject.batch)
        self.wanted = self.outputs(subject.model)
        self.kinds = of_each_rate(calibration(subject.calibration))
        self.macs = self.count(subject.model)

    def outputs(self, model: Path) -> Outputs:
        """Every output of a model for every test sample, in the order of the test file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        results = [session.run(None, feed) for _, feed in self.feeds]
        order = np.argsort(np.concatenate([part for part, _ in self.feeds]))
        return tuple(np.concatenate(parts)[order] for parts in zip(*results, strict=True))

    def count(self, model: Path, kind: str = "") -> int:
        """Multiplications of a model on the first calibration samples, or the first of a kind."""
        found = onnxprune.inspect(model, calibration=self.kinds[kind], threads=self.threads)
        return int(found.sizes.macs)

    def kept(self, model: Path) -> dict[str, float]:
        """Share of the multiplications that is left, in all and for each sampling rate."""
        return {
            f"kept{kind}": self.count(model, kind) / self.count(self.subject.model, kind)
            for kind in self.kinds
        }

    def original(self) -> dict[str, float]:
        """How well the original does, in the same terms."""
        return self.metrics(self.wanted)

    def judge(self, model: Path) -> dict[str, float]:
        """How well a pruned model does, and what it costs."""
        return self.kept(model) | self.metrics(self.outputs(model))

    def metrics(self, got: Outputs) -> dict[str, float]:
        """Figures for outputs of the test samples."""
        return self.subject.measure(self.wanted, got, self.samples)


def of_each_rate(samples: Any) -> dict[str, Any]:
    """All samples under an empty name; feeds with a sampling rate under `_RATE` as well."""
    kinds = {"": samples}
    for feed in samples if isinstance(samples, list) and RATE in samples[0] else ():
        kinds.setdefault(f"_{feed[RATE]}", []).append(feed)
    return kinds
