"""Accuracy of networks whose hidden layers are normalised over their units.

    python benchmarks/normalised.py [--macs 0.7,0.5,0.3]

Trains four small networks on the 8 x 8 digits of scikit-learn, exports them with PyTorch and prunes
them with the default options, without normalised axes, and with all of them.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import onnxprune

TRAINED, CALIBRATED = 1200, 512
EPOCHS, BATCH, RATE = 60, 64, 2e-3
CHOICES: dict[str, bool | str] = {"hidden": "hidden", "none": False, "streams too": True}


class ResponseNorm(nn.Module):
    """Global response norm of ConvNeXt V2, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of x."""
        response = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        relative = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.scale * (x * relative) + self.shift + x


class ConvBlock(nn.Module):
    """Block of ConvNeXt V2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            ResponseNorm(4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of x."""
        return x + self.hidden(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GateBlock(nn.Module):
    """Block of gMLP."""

    def __init__(self, width: int, hidden: int, tokens: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU())
        self.norm = nn.LayerNorm(hidden // 2)
        self.tokens = nn.Conv1d(tokens, tokens, 1)
        self.outer = nn.Linear(hidden // 2, width)
        nn.init.normal_(self.tokens.weight, std=1e-2)
        nn.init.ones_(self.tokens.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of x."""
        kept, gate = self.inner(x).chunk(2, -1)
        return x + self.outer(kept * self.tokens(self.norm(gate)))


class ConvNext(nn.Module):
    """Three blocks on a map of 4 x 4."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        stem = nn.Conv2d(1, width, 2, stride=2)
        self.body = nn.Sequential(stem, *(ConvBlock(width) for _ in range(3)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of x."""
        return self.head(self.body(x[:, None]).mean((2, 3)))


class GatedMlp(nn.Module):
    """Three blocks on 16 patches of 2 x 2."""

    def __init__(self, width: int = 32, hidden: int = 192) -> None:
        super().__init__()
        blocks = (GateBlock(width, hidden, 16) for _ in range(3))
        self.body = nn.Sequential(nn.Linear(4, width), *blocks)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of x."""
        patches = x.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, 16, 4)
        return self.head(self.body(patches).mean(1))


def perceptron(norm: type[nn.Module], activation: type[nn.Module], width: int = 128) -> nn.Module:
    """Three hidden layers, each normalised before its activation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (64, width, width):
        layers += [nn.Linear(before, width), norm(width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def train(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> onnx.ModelProto:
    """Train on shifted and noisy images; return the exported model."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
            across, down = torch.randint(-1, 2, (2,)).tolist()
            scores = network(torch.roll(noisy, (across, down), (1, 2)))
            loss = functional.cross_entropy(scores, classes[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    rows = torch.export.Dim("rows", min=2)
    exported = torch.onnx.export(
        network, (images[:2],), opset_version=18, dynamic_shapes=({0: rows},), verbose=False
    )
    return exported.model_proto


def accuracy(model: onnx.ModelProto, images: np.ndarray, classes: np.ndarray) -> float:
    """Percent of images whose class is found."""
    session = ort.InferenceSession(model.SerializeToString())
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    return 100 * float((scores.argmax(1) == classes).mean())


def pruned(model: onnx.ModelProto, images: np.ndarray, share: float, axes: bool | str) -> Any:
    """The smaller model; None where nothing can be pruned."""
    try:
        return onnxprune.prune(
            model,
            calibration={model.graph.input[0].name: images},
            target={"macs": share},
            normalised_axes=axes,
            measure_latency=False,
            threads=1,
        ).model
    except onnxprune.NothingPrunable:
        return None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--macs", default="0.7,0.5,0.3")
    shares = [float(text) for text in parser.parse_args().macs.split(",")]
    torch.manual_seed(0)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order] / 16 - 0.5).astype(np.float32)
    classes = digits.target[order]
    networks = {
        "layer normalisation": perceptron(nn.LayerNorm, nn.ReLU),
        "root mean squares": perceptron(nn.RMSNorm, nn.GELU),
        "ConvNeXt V2": ConvNext(),
        "gMLP": GatedMlp(),
    }
    for name, network in networks.items():
        model = train(network, torch.tensor(images[:TRAINED]), torch.tensor(classes[:TRAINED]))
        rest = images[TRAINED:], classes[TRAINED:]
        print(f"{name}: original {accuracy(model, *rest):.1f}")
        for choice, axes in CHOICES.items():
            results = [pruned(model, images[:CALIBRATED], share, axes) for share in shares]
            figures = [f"{accuracy(r, *rest):.1f}" if r is not None else "refused" for r in results]
            print(f"    {choice:12} {'  '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
