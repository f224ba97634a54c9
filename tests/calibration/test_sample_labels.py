"""Labels from everywhere, one for each sample."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxprune import InputError
from onnxprune.calibration.labels import class_labels, read_labels, take_labels, target_labels
from onnxprune.calibration.samples import read_samples
from onnxprune.model.inputs import InputSpec

SPECS = (InputSpec("x", np.dtype(np.float32), ("n", 2)),)
LABELS = [2, 0, 1]
OBJECTS = [{"boxes": [[0, 0, 1, 1]]}, {"boxes": []}, {"boxes": [[0, 0, 1, 1], [1, 1, 2, 2]]}]


@pytest.fixture
def samples():
    return read_samples({"x": np.zeros((3, 2), np.float32)}, SPECS)


def written(folder, form):
    path = folder / f"labels.{form}"
    if form == "npy":
        np.save(path, np.array(LABELS))
    elif form == "npz":
        np.savez(path, images=np.zeros(2), labels=np.array(LABELS))
    elif form == "json":
        path.write_text(json.dumps(LABELS))
    else:
        path.write_text("\n".join(map(str, LABELS)))
    return path


@pytest.mark.parametrize("form", ["npy", "npz", "txt", "json", "jsonl"])
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
    "array",
    [
        np.random.default_rng(0).random((3, 4, 5), np.float32),
        np.array(["a", "b", "c"]),
        np.array(OBJECTS, object),
        np.array(LABELS, np.uint8),
    ],
    ids=["maps", "text", "objects", "small"],
)
def test_arrays_stay_what_they_are(samples, array):
    assert read_labels(array, samples) is array
    assert np.array_equal(take_labels(array, np.array([2, 0])), array[[2, 0]])


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_lists_of_objects(samples, tmp_path, form):
    path = tmp_path / f"labels.{form}"
    path.write_text(json.dumps(OBJECTS) if form == "json" else "\n".join(map(json.dumps, OBJECTS)))
    assert read_labels(path, samples) == read_labels(OBJECTS, samples) == OBJECTS
    assert take_labels(OBJECTS, np.array([2, 0])) == [OBJECTS[2], OBJECTS[0]]
    assert class_labels(OBJECTS) is None


def test_lists_of_lists_stay_lists_whatever_their_lengths(samples):
    for boxes in ([[1, 2], [3, 4], [5, 6]], [[1], [2, 3], []]):
        assert read_labels(boxes, samples) == boxes


def test_text_one_for_each_line(samples, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a cat\n\nthree, dogs\n")
    assert read_labels(path, samples) == ["a cat", "", "three, dogs"]


def test_several_numbers_a_line(samples, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("1,2\n3,4\n5,6.5\n")
    assert read_labels(path, samples).tolist() == [[1, 2], [3, 4], [5, 6.5]]


def test_classes_are_whole_numbers():
    assert class_labels([[1, 2], [3, 4]]).shape == (2, 2)
    assert class_labels(np.array([1.0, 2.0])).dtype == np.int64
    for other in ([0.5, 1], [np.nan, 1], ["a"], OBJECTS, np.array([1j])):
        assert class_labels(other) is None


def test_targets_are_numbers():
    assert target_labels([0.5, 1]).dtype == np.float64
    assert target_labels(np.array([1, 2], np.float32)).dtype == np.int64
    with pytest.raises(InputError, match="expected numbers"):
        target_labels(["a", "b"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "2 labels for 3 samples"),
        ([0, 1, 2, 3], "4 labels for 3 samples"),
        (["a", "b"], "2 labels for 3 samples"),
        (7, "one label for each sample, such as whole numbers, not int"),
        ({"a": 1}, "one label for each sample, such as whole numbers, not dict"),
        ("missing.npy", "missing.npy"),
    ],
)
def test_unusable_labels(samples, labels, words):
    with pytest.raises(InputError, match=words):
        read_labels(labels, samples)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"a": 1}', "cannot be read: a list with one label for each sample, not dict"),
        ("a.jsonl", "1\n{", "cannot be read"),
    ],
)
def test_damaged_files(samples, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / name, samples)


def test_an_archive_with_several_arrays_has_to_say_which(samples, tmp_path):
    np.savez(tmp_path / "y.npz", a=np.array(LABELS), b=np.array(LABELS))
    with pytest.raises(InputError, match="holds a, b"):
        read_labels(tmp_path / "y.npz", samples)


def test_pickles_are_never_read(samples, tmp_path):
    np.save(tmp_path / "y.npy", np.array([{}, 1, 2], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "y.npy", samples)
