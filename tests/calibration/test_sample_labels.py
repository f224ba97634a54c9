"""Labels from everywhere, one for each sample."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.calibration.samples import read_labels, read_samples
from onnxprune.model.inputs import InputSpec

SPECS = (InputSpec("x", np.dtype(np.float32), ("n", 2)),)
LABELS = [2, 0, 1]


@pytest.fixture
def samples():
    return read_samples({"x": np.zeros((3, 2), np.float32)}, SPECS)


def written(folder, form):
    path = folder / f"labels.{form}"
    if form == "npy":
        np.save(path, np.array(LABELS))
    elif form == "npz":
        np.savez(path, images=np.zeros(2), labels=np.array(LABELS))
    else:
        path.write_text("\n".join(map(str, LABELS)))
    return path


@pytest.mark.parametrize("form", ["npy", "npz", "txt"])
def test_files(samples, tmp_path, form):
    found = read_labels(written(tmp_path, form), samples)
    assert found.dtype == np.int64
    assert found.tolist() == LABELS


def test_the_only_array_of_an_archive_needs_no_name(samples, tmp_path):
    np.savez(tmp_path / "y.npz", anything=np.array(LABELS, np.uint8))
    assert read_labels(str(tmp_path / "y.npz"), samples).tolist() == LABELS


def test_samples_that_come_as_feeds_are_counted():
    feeds = [{"x": np.zeros((2, 2), np.float32)}, {"x": np.zeros((1, 2), np.float32)}]
    assert read_labels(LABELS, read_samples(feeds, SPECS)).tolist() == LABELS


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "2 labels for 3 samples"),
        ([0, 1, 2, 3], "4 labels for 3 samples"),
        ([0.5, 1, 2], "whole numbers"),
        (["a", "b", "c"], "cannot be read"),
        (7, "whole numbers"),
        ([np.nan, 1, 2], "whole numbers"),
        ("missing.npy", "missing.npy"),
    ],
)
def test_unusable_labels(samples, labels, words):
    with pytest.raises(InputError, match=words):
        read_labels(labels, samples)


def test_an_archive_with_several_arrays_has_to_say_which(samples, tmp_path):
    np.savez(tmp_path / "y.npz", a=np.array(LABELS), b=np.array(LABELS))
    with pytest.raises(InputError, match="holds a, b"):
        read_labels(tmp_path / "y.npz", samples)


def test_pickles_are_never_read(samples, tmp_path):
    np.save(tmp_path / "y.npy", np.array([{}, 1, 2], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "y.npy", samples)
