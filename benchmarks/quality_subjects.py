"""What `quality.py` prunes, and how well a pruned model still does its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from quality_feeds import LABELS, batches, calibration, load_arrays

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
    """

    name: str
    model: Path
    calibration: Path
    test: Path
    budgets: tuple[float, ...] = (0.75, 0.5)
    goals: Mapping[float, Mapping[str, float]] = field(default_factory=dict)


def cifar(folder: Path, scratch: Path) -> list[Subject]:
    """ResNet-20 with 1024 calibration and 4000 test images."""
    for name in ("calibration", "test"):
        with np.load(folder / f"{name}.npz") as file:
            arrays = {"input": normalised(file["images"])}
            if "labels" in file.files:
                arrays[LABELS] = file["labels"].astype(np.int64)
        np.savez(scratch / f"cifar_{name}.npz", **arrays)
    goals = {0.75: 0.859, 0.6: 0.842, 0.5: 0.830, 0.35: 0.770}
    return [
        Subject(
            "resnet20",
            folder / "resnet20.onnx",
            scratch / "cifar_calibration.npz",
            scratch / "cifar_test.npz",
            (0.75, 0.6, 0.5, 0.35),
            {budget: {"accuracy": accuracy} for budget, accuracy in goals.items()},
        )
    ]


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
    return [
        Subject(
            "minilm",
            cache / "minilm.onnx",
            cache / "minilm_calibration.npz",
            cache / "minilm_test.npz",
            (0.7, 0.5),
            {0.7: {"cosine": 0.970, "neighbour": 0.76}, 0.5: {"cosine": 0.92, "neighbour": 0.64}},
        )
    ]


class DivergenceEvaluator:
    """Compares pruned models with the original on the test samples of a subject."""

    def __init__(self, subject: Subject, *, tests: int | None, threads: int) -> None:
        self.subject, self.threads = subject, threads
        with np.load(subject.test) as file:
            labels = file[LABELS][:tests] if LABELS in file.files else None
        self.labels: Any = labels
        self.feeds = batches(load_arrays(subject.test, tests), 100)
        self.wanted = self.outputs(subject.model)
        self.macs = self.count(subject.model)

    def outputs(self, model: Path) -> Any:
        """The last output of a model for every test sample, float64 [samples, features]."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = session.get_outputs()[-1].name
        results = [session.run([name], feed)[0] for _, feed in self.feeds]
        positions = np.concatenate([part for part, _ in self.feeds])
        return np.concatenate(results).astype(np.float64)[np.argsort(positions)]

    def count(self, model: Path) -> int:
        """Multiplications of a model on the first calibration samples."""
        samples = calibration(self.subject.calibration)
        found = onnxprune.inspect(model, calibration=samples, threads=self.threads)
        return int(found.sizes.macs)

    def original(self) -> dict[str, float]:
        """How well the original does, in the same terms."""
        return self.metrics(self.wanted)

    def judge(self, model: Path) -> dict[str, float]:
        """How well a pruned model does, and what it costs."""
        return {"kept": self.count(model) / self.macs} | self.metrics(self.outputs(model))

    def metrics(self, got: Any) -> dict[str, float]:
        """Figures for outputs of the test samples."""
        if self.labels is None:
            return embedding_metrics(self.wanted, got)
        return class_metrics(self.wanted, got, self.labels)


def class_metrics(wanted: Any, got: Any, labels: Any) -> dict[str, float]:
    """Accuracy, agreement with the original, and KL(original || pruned)."""
    first, second = log_probabilities(wanted), log_probabilities(got)
    best = got.argmax(1)
    return {
        "accuracy": float((best == labels).mean()),
        "agreement": float((best == wanted.argmax(1)).mean()),
        "kl": float((np.exp(first) * (first - second)).sum(1).mean()),
    }


def log_probabilities(scores: Any) -> Any:
    """Of logits, or of probabilities where a model ends in them."""
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-4):
        return np.log(np.maximum(scores, 1e-12))
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def embedding_metrics(wanted: Any, got: Any) -> dict[str, float]:
    """Mean cosine to the original, and how often the nearest other sample is the same one.

    `neighbour`: samples and those they are compared with all embedded by the pruned model;
    `retrieval`: compared with an index that the original made.
    """
    first, second = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (wanted, got)
    )
    true = nearest(first, first)
    return {
        "cosine": float((first * second).sum(1).mean()),
        "neighbour": float((nearest(second, second) == true).mean()),
        "retrieval": float((nearest(second, first) == true).mean()),
    }


def nearest(vectors: Any, index: Any) -> Any:
    """Place in the index of the most similar vector at another place, for unit vectors [n, d]."""
    similar = vectors @ index.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(1)
