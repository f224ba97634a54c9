"""A few of the samples that ship with the models: most of what is tested needs no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.paths import MODELS


def few_samples(name: str, count: int = 64) -> dict[str, Any]:
    """The first calibration samples of a model of models/, by input.

    Args:
        name: of the model; networks that differ in their normalisation alone share their samples.
        count: how many.
    """
    family = name.removesuffix("_bn").removesuffix("_mlp" if name == "spirals_mlp" else "")
    with np.load(MODELS / f"{family}_calibration.npz") as file:
        return {key: file[key][:count] for key in file.files}


def few_samples_file(folder: Path, name: str, count: int = 64) -> Path:
    """The same as an .npz file in a folder."""
    path = folder / f"{name}_{count}_samples.npz"
    np.savez(path, **few_samples(name, count))
    return path
