"""Views of calibration images."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.calibration.augment import augmented, varied
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


def test_a_crop_shows_a_part_of_every_image_at_full_size() -> None:
    # a slope is a slope again, not as steep
    slope = np.broadcast_to(np.arange(16, dtype=np.float32), (6, 3, 16, 16))
    made = augmented({"x": slope}, AXES, ["crop"], np.random.default_rng(0))["x"][6:]
    assert made.shape == slope.shape
    assert made.min() >= 0
    assert made.max() <= 15
    steps = np.diff(made, axis=3)[..., 2:-2]
    assert (steps >= 0.8 - 1e-4).all()
    assert (steps <= 1 + 1e-4).all()
    assert len({round(float(each), 4) for each in steps[:, 0, 8, 5]}) == 6


def tokens() -> np.ndarray:
    """Sequences of lengths 9 to 3 that no token is twice in, padded with zeros."""
    rows = np.zeros((7, 12), np.int64)
    for number, row in enumerate(rows):
        row[: 9 - number] = 100 * (number + 1) + np.arange(9 - number)
    return rows


def test_a_splice_goes_on_as_another_sequence_with_every_token_in_its_place() -> None:
    given = tokens()
    feed = {"x": given, "id": (given > 0).astype(np.int64)}
    for seed in range(8):
        made = augmented(feed, AXES, ["splice"], np.random.default_rng(seed))
        for row, before in zip(made["x"][7:], given, strict=True):
            filled = row[row > 0]
            # padding stays at the end
            assert (row[: len(filled)] > 0).all()
            assert row[0] == before[0]
            assert (filled % 100 == np.arange(len(filled))).all()
            sources = filled // 100
            changes = int((np.diff(sources) != 0).sum())
            assert changes <= 1
            assert len(filled) in {(each > 0).sum() for each in given}
        # inputs change together: the mask is that of the tokens
        assert np.array_equal(made["id"], made["x"] > 0)


def test_a_view_says_what_it_is_for() -> None:
    with pytest.raises(InputError, match="splice is for sequences of tokens"):
        augmented({"x": images(2, 3, 4, 4)}, AXES, ["splice"], np.random.default_rng(0))
    with pytest.raises(InputError, match="crop is for images"):
        augmented({"x": tokens()}, AXES, ["crop"], np.random.default_rng(0))


def test_about_half_of_the_samples_are_seen_in_another_way() -> None:
    given = images(64, 1, 4, 4)
    made = varied({"x": given}, ["flip"], np.random.default_rng(0))["x"]
    flipped = [
        np.array_equal(after, before[..., ::-1]) for after, before in zip(made, given, strict=True)
    ]
    same = [np.array_equal(after, before) for after, before in zip(made, given, strict=True)]
    assert all(a or b for a, b in zip(flipped, same, strict=True))
    assert 20 < sum(flipped) < 44
