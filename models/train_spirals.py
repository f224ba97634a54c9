"""Trains and exports `spirals_mlp.onnx`: two spirals told apart by a wide, redundant MLP.

A group lasso on the hidden units (the norm of a unit's incoming weights, bias and outgoing
weights together) gathers the task in fewer units than there are: the rest fall silent or stay
nearly constant. So the half of each hidden layer with the smallest standard deviation of
activation after ReLU can be removed, its mean folded into the next bias; a random half cannot.

Run: python models/train_spirals.py
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from model_files import export_torchscript, report, save_model, save_samples
from torch import nn

SAMPLES = 1000
CALIBRATION_SAMPLES = 512
TURNS = 1.75
NOISE = 0.02
HIDDEN_UNITS = 50
STEPS = 3000
LEARNING_RATE = 5e-3
GROUP_LASSO = 2.5e-4


def draw_spirals(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws points of two interleaved spirals that fill the unit disc.

    Args:
        seed: seed of the random numbers.

    Returns:
        The points, float32 [SAMPLES, 2], and their spiral, int64 [SAMPLES], in random order.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(SAMPLES) % 2)
    # The square root spreads the points evenly along the arms.
    radius = np.sqrt(rng.uniform(0.02, 1.0, SAMPLES))
    angle = 2 * np.pi * TURNS * radius + np.pi * labels
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points += rng.normal(0.0, NOISE, points.shape)
    return points.astype(np.float32), labels.astype(np.int64)


def build_network() -> nn.Sequential:
    """Builds the MLP 2-50-50-2 with ReLU."""
    return nn.Sequential(
        nn.Linear(2, HIDDEN_UNITS),
        nn.ReLU(),
        nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS),
        nn.ReLU(),
        nn.Linear(HIDDEN_UNITS, 2),
    )


def group_lasso(network: nn.Sequential) -> torch.Tensor:
    """Sums, over the hidden units, the norm of all weights of one unit.

    Args:
        network: the MLP of `build_network`.

    Returns:
        A float32 scalar.
    """
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    total = torch.zeros(())
    for layer, following in pairwise(linears):
        unit = torch.cat([layer.weight, layer.bias[:, None], following.weight.T], dim=1)
        total = total + unit.norm(dim=1).sum()
    return total


def train(points: np.ndarray, labels: np.ndarray) -> nn.Sequential:
    """Trains the MLP on the whole training part at every step.

    Args:
        points: float32 [samples, 2].
        labels: int64 [samples].

    Returns:
        The trained network.
    """
    network = build_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    inputs, targets = torch.from_numpy(points), torch.from_numpy(labels)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), targets)
        (loss + GROUP_LASSO * group_lasso(network)).backward()
        optimizer.step()
        schedule.step()
    return network


def main() -> None:
    """Trains, exports and measures the model and writes its samples."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    points, labels = draw_spirals(seed=1)
    test_points, test_labels = draw_spirals(seed=2)
    network = train(points, labels)
    save_samples("spirals", "x", points[:CALIBRATION_SAMPLES], test_points, test_labels)
    model = export_torchscript(network, torch.from_numpy(points[:4]), "x")
    report(save_model(model, "spirals_mlp"), samples="spirals")


if __name__ == "__main__":
    main()
