"""Along which axis of each input samples lie, and what becomes of inputs that have none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.calibration.labels import read_labels
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples, divide
from onnxprune.errors import CalibrationError
from onnxprune.model.inputs import InputSpec

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def spec(name: str, *shape: int | str | None, dtype: np.dtype = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


RATE = spec("sr", dtype=INT)
VOICE = (spec("input", "batch", "time"), spec("state", 2, "batch", 4), RATE)
CLIP = (
    spec("input_ids", "texts", "length", dtype=INT),
    spec("pixel_values", "images", 3, 4, 4),
    spec("attention_mask", "texts", "length", dtype=INT),
)


@pytest.mark.parametrize(
    ("specs", "axes"),
    [
        ([spec("x", "N", 3)], {"x": 0}),
        ([spec("x", "N", 3), spec("y", "N")], {"x": 0, "y": 0}),
        ([spec("x", 1, 3), spec("y", 1, 8)], {"x": 0, "y": 0}),
        ([spec("x", None, 3), spec("y", None)], {"x": 0, "y": 0}),
        (VOICE, {"input": 0, "state": 1}),
        ([spec("input", None, None), spec("state", 2, None, 4), RATE], {"input": 0, "state": 1}),
        ([spec("x", "time", "batch", 3), spec("h", 2, "batch", 4)], {"x": 1, "h": 1}),
        ([spec("image", "N", 3, "H", "W"), spec("size", 2)], {"image": 0}),
        (CLIP, {}),
        # names that torch and tf2onnx make up
        ([spec(n, f"{n}_dynamic_axes_1", f"{n}_dynamic_axes_2") for n in "ab"], {"a": 0, "b": 0}),
        ([spec("x", "unk__6", 3), spec("h", 2, "unk__7", 4)], {"x": 0, "h": 1}),
        ([spec("x", 1, 3), spec("h", 2, 1, 4)], {}),
        ([RATE], {}),
        # a fixed batch of one, and time that is open
        ([spec("x", 1, "time"), spec("mask", 1, "time"), spec("h", 2, 1, 4)], {}),
        ([spec("x", 1, None), spec("h", 2, 1, 4)], {}),
        ([spec("x", "time", "N", 3), spec("h", 1, "N", 4)], {"x": 1, "h": 1}),
        ([spec("x", 16, "N", 3), spec("h", 2, "N", 4)], {"x": 1, "h": 1}),
    ],
    ids=lambda case: " ".join(each.name for each in case) if isinstance(case, tuple) else None,
)
def test_axes_follow_from_the_declared_shapes(
    specs: list[InputSpec], axes: Mapping[str, int]
) -> None:
    assert SampleAxes.of(specs).axes == axes


def test_windows_of_a_model_with_a_fixed_batch_are_whole_feeds() -> None:
    specs = (spec("x", 1, "time"), spec("h", 2, 1, 4), RATE)
    source = {"x": np.zeros((5, 7), np.float32), "h": np.zeros((2, 1, 4), np.float32), "sr": 8}
    found = [feed["x"].shape for feed in read_samples(source, specs).batches(8)]
    assert found == [(1, 7)] * 5


def test_a_fixed_batch() -> None:
    assert SampleAxes.of([spec("x", 4, 3), RATE]).fixed == 4
    assert SampleAxes.of([spec("x", "N", 3), RATE]).fixed == 0


def voice(count: int, first: int = 0) -> dict[str, np.ndarray]:
    """Samples 0, 1, ... that tell their number in every input that has samples."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return {
        "input": np.repeat(numbers[:, None], 6, axis=1),
        "state": np.tile(numbers[None, :, None], (2, 1, 4)),
        "sr": np.array(16000),
    }


def agree(samples: Samples, size: int) -> list[list[int]]:
    """Numbers of the samples in every batch, which all inputs and `numbered` agree on."""
    found = []
    for numbers, feed in samples.numbered(size):
        told = feed["input"][:, 0].astype(int).tolist()
        assert feed["state"][0, :, 0].astype(int).tolist() == told
        assert feed["sr"].shape == ()
        assert feed["sr"] == 16000
        assert numbers.tolist() == told
        found.append(told)
    return found


class TestStates:
    def test_they_are_cut_along_their_own_axis(self) -> None:
        samples = read_samples(voice(5), VOICE)
        assert samples.count == 5
        assert agree(samples, 2) == [[0, 1], [2, 3], [4]]
        assert samples.take(3)["state"].shape == (2, 3, 4)

    def test_in_one_file_and_in_a_folder_of_files(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "all.npz", **voice(5))
        assert agree(read_samples(tmp_path / "all.npz", VOICE), 4) == [[0, 1, 2, 3], [4]]
        (tmp_path / "folder").mkdir()
        for number in range(3):
            np.savez(tmp_path / "folder" / f"{number}.npz", **voice(1, number))
        samples = read_samples(tmp_path / "folder", VOICE)
        assert samples.count == 3
        assert agree(samples, 2) == [[0, 1], [2]]

    def test_in_feeds(self) -> None:
        samples = read_samples([voice(2), voice(1, 2)], VOICE)
        assert agree(samples, 1) == [[0, 1], [2]]
        assert samples.count == 3
        assert samples.take(3)["state"][0, :, 0].tolist() == [0, 1, 2]

    def test_kept_out_of_fitting(self) -> None:
        fitted, held = divide(read_samples(voice(9), VOICE))
        assert agree(held, 9) == [[3, 7]]
        assert agree(fitted, 9) == [[0, 1, 2, 4, 5, 6, 8]]

    def test_labels_belong_to_samples(self) -> None:
        samples = read_samples(iter([voice(2), voice(3, 2)]), VOICE)
        assert read_labels(range(5), samples).tolist() == [0, 1, 2, 3, 4]

    def test_other_numbers_are_refused(self) -> None:
        wrong = voice(3) | {"state": np.zeros((2, 2, 4), np.float32)}
        with pytest.raises(CalibrationError, match="3 for 'input', 2 for 'state'"):
            read_samples(wrong, VOICE)


class TestScalars:
    def test_rows_are_counted_beside_them(self) -> None:
        specs = (spec("x", "N", 2), RATE)
        samples = read_samples([{"x": np.zeros((4, 2), np.float32), "sr": 8}], specs)
        assert [numbers.tolist() for numbers, _ in samples.numbered(9)] == [[0, 1, 2, 3]]

    @pytest.mark.parametrize("rate", [16000, [16000]])
    def test_one_number_fits_a_scalar_and_an_axis_of_one(self, rate: object) -> None:
        x = np.zeros((3, 2), np.float32)
        for declared in (RATE, spec("sr", 1, dtype=INT)):
            specs = (spec("x", "N", 2), declared)
            for source in ({"x": x, "sr": np.array(rate)}, [{"x": x, "sr": rate}]):
                samples = read_samples(source, specs)
                (feed,) = samples.batches(8)
                assert feed["sr"].shape == declared.shape
                assert len(feed["x"]) == 3

    def test_one_for_each_sample(self) -> None:
        specs = (spec("x", "N", 2), RATE)
        source = {"x": np.zeros((3, 2), np.float32), "sr": np.array([1, 2, 3])}
        assert [int(feed["sr"]) for feed in read_samples(source, specs).batches(8)] == [1, 2, 3]

    def test_given_once_in_feeds_they_hold_for_all(self) -> None:
        later = [{"input": each["input"], "state": each["state"]} for each in map(voice, (1, 1))]
        for source in ([voice(2), *later], iter([voice(2), *later])):
            samples = read_samples(source, VOICE)
            for _ in range(2):
                assert [int(feed["sr"]) for feed in samples.batches(1)] == [16000] * 3

    def test_given_once_in_a_folder_they_hold_for_all(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "sampling_rate.npz", sr=16000)
        for number in range(3):
            one = voice(1, number)
            np.savez(tmp_path / f"{number}.npz", input=one["input"], state=one["state"])
        assert agree(read_samples(tmp_path, VOICE), 2) == [[0, 1], [2]]

    def test_given_once_in_test_data(self, tmp_path: Path) -> None:
        specs = (spec("input", "batch", "time"), RATE)
        for number in range(2):
            folder = tmp_path / f"test_data_set_{number}"
            folder.mkdir()
            arrays = {"input": voice(1, number)["input"], "sr": np.array(16000)}
            for index, (name, array) in enumerate([*arrays.items()][: 2 - number]):
                tensor = onnx.numpy_helper.from_array(array, name)
                (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
        assert [int(feed["sr"]) for feed in read_samples(tmp_path, specs).batches(1)] == [16000] * 2

    def test_missing_everywhere_the_message_says_where_to_give_them(self, tmp_path: Path) -> None:
        without = {name: array for name, array in voice(2).items() if name != "sr"}
        np.savez(tmp_path / "0.npz", **without)
        for source in (without, [without], tmp_path / "0.npz", tmp_path):
            with pytest.raises(CalibrationError) as caught:
                list(read_samples(source, VOICE).batches(1))
            assert "nothing for the input 'sr'" in str(caught.value)
            assert "one value for all samples" in str(caught.value)

    def test_a_side_input_of_fixed_shape_is_the_same_for_all(self) -> None:
        specs = (spec("x", "N", 2), spec("anchors", 3, 4))
        source = {"x": np.zeros((5, 2), np.float32), "anchors": np.ones((3, 4), np.float32)}
        for samples in (read_samples(source, specs), read_samples([source], specs)):
            assert [len(numbers) for numbers, _ in samples.numbered(5)] == [5]
            assert samples.take(1)["anchors"].shape == (3, 4)

    def test_with_a_batch_of_one_too(self) -> None:
        specs = (spec("x", 1, 2), spec("anchors", 3, 4), RATE)
        source = {"x": np.zeros((5, 2), np.float32), "anchors": np.ones((3, 4), np.float32)}
        feeds = list(read_samples(source | {"sr": np.array(1)}, specs).batches(5))
        assert [feed["x"].shape for feed in feeds] == [(1, 2)] * 5
        assert {feed["anchors"].shape for feed in feeds} == {(3, 4)}

    def test_feeds_with_other_scalars_are_not_joined(self) -> None:
        specs = (spec("x", "N", 2), RATE)
        feeds = [{"x": np.zeros((1, 2), np.float32), "sr": rate} for rate in (8, 16)]
        assert len(read_samples(feeds, specs).take(2)["x"]) == 1


def pair(texts: int, images: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.zeros((texts, 5), np.int64),
        "pixel_values": np.zeros((images, 3, 4, 4), np.float32),
        "attention_mask": np.ones((texts, 5), np.int64),
    }


class TestInputsThatNothingTies:
    def test_each_file_of_a_folder_is_one_sample(self, tmp_path: Path) -> None:
        for number, (texts, images) in enumerate([(2, 3), (2, 2), (4, 1)]):
            np.savez(tmp_path / f"{number}.npz", **pair(texts, images))
        samples = read_samples(tmp_path, CLIP)
        assert samples.count == 3
        found = [
            (len(numbers), len(feed["input_ids"]), len(feed["pixel_values"]))
            for numbers, feed in samples.numbered(8)
        ]
        assert found == [(1, 2, 3), (1, 2, 2), (1, 4, 1)]

    def test_each_feed_is_one_sample(self) -> None:
        samples = read_samples([pair(2, 3), pair(2, 2)], CLIP)
        assert [numbers.tolist() for numbers, _ in samples.numbered(8)] == [[0], [1]]

    def test_one_file_of_pairs_is_cut_into_pairs(self) -> None:
        samples = read_samples(pair(5, 5), CLIP)
        assert samples.count == 5
        assert [numbers.tolist() for numbers, _ in samples.numbered(4)] == [[0, 1, 2, 3], [4]]

    def test_other_numbers_in_one_file_say_what_to_do(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "all.npz", **pair(2, 3))
        with pytest.raises(CalibrationError) as caught:
            read_samples(tmp_path / "all.npz", CLIP)
        assert "2 for 'input_ids', 3 for 'pixel_values'" in str(caught.value)
        assert "a folder with one .npz for each" in str(caught.value)
