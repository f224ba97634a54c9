"""Views of calibration images."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.augment import augmented
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import InputError

AXES = SampleAxes({"x": 0, "id": 0})


def images(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(("shape", "width"), [((2, 3, 8, 6), 3), ((2, 8, 6, 3), 2)])
def test_a_flip_mirrors_the_width(shape: tuple[int, ...], width: int) -> None:
    given = images(*shape)
    made = augmented({"x": given}, AXES, ["flip"], np.random.default_rng(0))["x"]
    assert np.array_equal(made[:2], given)
    assert np.array_equal(made[2:], np.flip(given, width))


def test_a_shift_keeps_most_of_every_image() -> None:
    given = images(5, 1, 16, 16)
    made = augmented({"x": given}, AXES, ["shift"], np.random.default_rng(0))["x"][5:]
    assert made.shape == given.shape
    for one, shifted in zip(given, made, strict=True):
        assert np.isin(shifted, one).all()
        assert len(np.intersect1d(one[:, 2:-2, 2:-2], shifted)) == 12 * 12


def test_other_inputs_are_repeated() -> None:
    feed = {"x": images(2, 3, 4, 4), "id": np.array([[1], [2]])}
    made = augmented(feed, AXES, ["flip", "shift"], np.random.default_rng(0))
    assert made["x"].shape == (6, 3, 4, 4)
    assert made["id"].ravel().tolist() == [1, 2, 1, 2, 1, 2]


def test_without_images_it_is_refused() -> None:
    with pytest.raises(InputError, match="images"):
        augmented({"x": images(2, 3)}, AXES, ["flip"], np.random.default_rng(0))
