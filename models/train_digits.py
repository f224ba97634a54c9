"""Trains and exports the models of the 8x8 digits: an MLP, a residual CNN and a transformer.

The digits are scikit-learn's own copy (`sklearn.datasets.load_digits`): 1797 images, ten classes.

Run: python models/train_digits.py
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from digits_networks import DigitsResNet, DigitsTransformer
from model_files import export_dynamo, export_torchscript, report, save_model, save_samples
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn

TEST_FRACTION = 0.25
CALIBRATION_SAMPLES = 512
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
MAXIMAL_PIXEL = 16.0


class Digits(NamedTuple):
    """The training and the test part of the digits.

    Attributes:
        train: pixels from 0 to 1, float32 [samples, 64].
        train_labels: int64 [samples].
        test: pixels from 0 to 1, float32 [test samples, 64].
        test_labels: int64 [test samples].
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def load_split() -> Digits:
    """Loads the digits, shuffled and split with the same share of every class."""
    pixels, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        (pixels / MAXIMAL_PIXEL).astype(np.float32),
        labels.astype(np.int64),
        test_size=TEST_FRACTION,
        stratify=labels,
        random_state=0,
    )
    return Digits(train, train_labels, test, test_labels)


def save_digits(name: str, input_name: str, digits: Digits, shape: tuple[int, ...]) -> None:
    """Writes the calibration and test samples of one model.

    Args:
        name: the model, start of both file names.
        input_name: name of the model's input.
        digits: the split digits.
        shape: shape of one sample, with 64 elements.
    """
    calibration = digits.train[:CALIBRATION_SAMPLES].reshape(-1, *shape)
    save_samples(name, input_name, calibration, digits.test.reshape(-1, *shape), digits.test_labels)


def train(network: nn.Module, inputs: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    """Trains a torch network in place with AdamW and a one-cycle learning rate.

    Args:
        network: maps inputs to logits of shape [batch, 10].
        inputs: float32 [samples, ...].
        labels: int64 [samples].
        epochs: passes over the samples.
    """
    batches = -(-len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * batches)
    samples, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(samples)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                network(samples[batch]), targets[batch], label_smoothing=0.05
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def make_mlp(digits: Digits) -> None:
    """Trains scikit-learn's MLPClassifier and exports it with skl2onnx as `digits_mlp`."""
    classifier = MLPClassifier((64, 64), alpha=1e-3, max_iter=300, random_state=0)
    classifier.fit(digits.train, digits.train_labels)
    model = to_onnx(
        classifier,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    save_digits("digits_mlp", "pixels", digits, (64,))
    report(save_model(model, "digits_mlp"), samples="digits_mlp")


def make_resnets(digits: Digits) -> None:
    """Trains the residual CNN and exports it twice, with BatchNorm folded and left in place."""
    torch.manual_seed(0)
    images = digits.train.reshape(-1, 1, 8, 8)
    network = DigitsResNet()
    train(network, images, digits.train_labels, epochs=30)
    save_digits("digits_resnet", "images", digits, (1, 8, 8))
    for name, fold in (("digits_resnet", True), ("digits_resnet_bn", False)):
        model = export_torchscript(network, torch.from_numpy(images[:4]), "images", fold=fold)
        report(save_model(model, name), samples="digits_resnet")


def make_transformer(digits: Digits) -> None:
    """Trains the transformer and exports it with the dynamo exporter as `digits_transformer`."""
    torch.manual_seed(0)
    rows = digits.train.reshape(-1, 8, 8)
    network = DigitsTransformer()
    train(network, rows, digits.train_labels, epochs=120)
    save_digits("digits_transformer", "rows", digits, (8, 8))
    model = export_dynamo(network, torch.from_numpy(rows[:4]), "rows")
    report(save_model(model, "digits_transformer"), samples="digits_transformer")


def main() -> None:
    """Makes every digits model and its samples."""
    torch.set_num_threads(1)
    digits = load_split()
    make_mlp(digits)
    make_resnets(digits)
    make_transformer(digits)


if __name__ == "__main__":
    main()
