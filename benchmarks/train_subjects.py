"""Train and export three subjects of `quality.py`; runs in an environment of its own.

    python benchmarks/train_subjects.py segmentation|keywords|two-rates FOLDER

The environment holds torch, onnx and onnxscript; `quality.py` makes it. Data are made from fixed
seeds (`made_data.py`), training takes a few minutes on one core. Written into FOLDER: `NAME.onnx`,
`NAME_calibration.npz` with inputs from the training part and `NAME_test.npz` with other inputs and
their labels.

    segmentation  a U-Net that finds four textures in images of 64 x 64
    keywords      a network of depthwise separable convolutions that tells ten words apart
    two-rates     a voice detector for sound of 8 or 16 kHz: the model is one `If` that chooses
                  between two networks by the scalar input `sr`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from made_data import RATES, TEXTURES, WORDS, spoken_words, textured_images, windows
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from two_rates import OPSET, chosen_by_rate

SEED, BATCH, RATE = 0, 32, 3e-3


def convolution(width_in: int, width_out: int) -> nn.Sequential:
    """A 3 x 3 convolution with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.ReLU(),
    )


class Segmenter(nn.Module):
    """A U-Net of three resolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(convolution(3, width), convolution(width, width))
        self.second = nn.Sequential(
            convolution(width, 2 * width), convolution(2 * width, 2 * width)
        )
        self.third = nn.Sequential(
            convolution(2 * width, 4 * width), convolution(4 * width, 4 * width)
        )
        self.pool = nn.MaxPool2d(2)
        self.up_second = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up_first = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join_second = convolution(4 * width, 2 * width)
        self.join_first = convolution(2 * width, width)
        self.classes = nn.Conv2d(width, TEXTURES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 5, 64, 64] of images [batch, 3, 64, 64]."""
        first = self.first(images)
        second = self.second(self.pool(first))
        third = self.third(self.pool(second))
        second = self.join_second(torch.cat([self.up_second(third), second], 1))
        return self.classes(self.join_first(torch.cat([self.up_first(second), first], 1)))


class KeywordSpotter(nn.Module):
    """A strided convolution, then depthwise separable ones."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, (8, 4), stride=2, padding=(3, 1), bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for _ in range(blocks):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.classes = nn.Linear(width, len(WORDS))

    def forward(self, spectrograms: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 10] of log-mel spectrograms [batch, 1, 32, 30]."""
        return self.classes(self.features(spectrograms).mean((2, 3)))


class VoiceDetector(nn.Module):
    """A short-time Fourier transform as a convolution, then convolutions over time."""

    def __init__(self, rate: int, width: int = 64) -> None:
        super().__init__()
        size = rate // 62
        self.bins = size // 2
        window = np.hanning(size)
        angle = 2 * np.pi * np.outer(np.arange(self.bins), np.arange(size)) / size
        basis = np.concatenate([np.cos(angle), np.sin(angle)]) * window
        self.register_buffer("basis", torch.from_numpy(basis.astype(np.float32))[:, None])
        self.hop = size // 2
        layers: list[nn.Module] = []
        for width_in, stride in ((self.bins, 1), (width, 2), (width, 1), (width, 2)):
            layers += [
                nn.Conv1d(width_in, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
        self.encoder = nn.Sequential(*layers)
        self.voice = nn.Linear(width, 1)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Probability of voice [batch, 1] in windows [batch, samples]."""
        parts = nn.functional.conv1d(sound[:, None], self.basis, stride=self.hop)
        real, imaginary = parts[:, : self.bins], parts[:, self.bins :]
        loudness = torch.log(real * real + imaginary * imaginary + 1e-4)
        return torch.sigmoid(self.voice(self.encoder(loudness).mean(2)))


def train(network: nn.Module, inputs: Any, labels: Any, *, epochs: int, loss: Any) -> None:
    """Train a network in place with AdamW and a one-cycle learning rate."""
    samples, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(samples)).split(BATCH):
            optimizer.zero_grad()
            loss(network(samples[batch]), targets[batch]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def exported(network: nn.Module, example: Any, name: str, output: str) -> onnx.ModelProto:
    """A network as ONNX, dynamic in the batch, without the paths of this machine."""
    program = torch.onnx.export(
        network.eval(),
        (torch.from_numpy(example),),
        dynamo=True,
        input_names=[name],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    cleared = ClearMetadataAndDocStringPass()(program.model).model
    return ir.to_proto(cleared)


def save(folder: Path, name: str, model: onnx.ModelProto, calibration: Any, test: Any) -> None:
    """Write the samples and then the model, so that a model in place is a finished one."""
    onnx.checker.check_model(model, full_check=True)
    np.savez_compressed(folder / f"{name}_calibration.npz", **calibration)
    np.savez_compressed(folder / f"{name}_test.npz", **test)
    unfinished = folder / f"{name}.unfinished.onnx"
    onnx.save(model, unfinished)
    unfinished.rename(folder / f"{name}.onnx")


def segmentation(folder: Path) -> None:
    """The U-Net, with 256 calibration and 300 test images."""
    rng = np.random.default_rng(SEED)
    images, maps = textured_images(1600, rng)
    test, truth = textured_images(300, rng)
    network = Segmenter()
    train(network, images, maps, epochs=8, loss=nn.functional.cross_entropy)
    model = exported(network, images[:2], "images", "scores")
    samples = {"images": test, "labels": truth}
    save(folder, "segmentation", model, {"images": images[:256]}, samples)


def keywords(folder: Path) -> None:
    """The keyword spotter, with 512 calibration and 2000 test words."""
    rng = np.random.default_rng(SEED)
    spectrograms, words = spoken_words(4000, rng)
    test, truth = spoken_words(2000, rng)
    network = KeywordSpotter()
    train(network, spectrograms, words, epochs=12, loss=nn.functional.cross_entropy)
    model = exported(network, spectrograms[:2], "features", "scores")
    samples = {"features": test, "labels": truth}
    save(folder, "keywords", model, {"features": spectrograms[:512]}, samples)


def two_rates(folder: Path) -> None:
    """The voice detector, with 256 calibration and 1000 test windows of each rate.

    In the files the windows are padded to the length of the higher rate; `sr` has the rate of each.
    """
    rng = np.random.default_rng(SEED)
    branches, calibration, tests, labels = {}, [], [], []
    for rate in RATES:
        sound, voice = windows(8000, rate, rng)
        test, truth = windows(1000, rate, rng)
        network = VoiceDetector(rate)
        targets = voice[:, None].astype(np.float32)
        train(network, sound, targets, epochs=15, loss=nn.functional.binary_cross_entropy)
        branches[rate] = exported(network, sound[:2], "input", "output")
        calibration.append(sound[:256])
        tests.append(test)
        labels.append(truth)
    save(
        folder,
        "two-rates",
        chosen_by_rate(branches),
        padded(calibration),
        padded(tests) | {"labels": np.stack(labels, 1).reshape(-1)},
    )


def padded(sounds: list[Any]) -> dict[str, Any]:
    """Windows of the rates of `RATES`, taken in turn, with the rate of each."""
    length = max(sound.shape[1] for sound in sounds)
    rows = [np.pad(sound, ((0, 0), (0, length - sound.shape[1]))) for sound in sounds]
    rates = np.tile(np.array(RATES, np.int64), len(rows[0]))
    return {"input": np.stack(rows, 1).reshape(-1, length), "sr": rates}


MAKERS = {"segmentation": segmentation, "keywords": keywords, "two-rates": two_rates}


def main() -> int:
    """Make one subject."""
    name, folder = sys.argv[1:]
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    MAKERS[name](Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
