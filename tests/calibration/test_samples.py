"""Every form calibration samples may have, how they become batches, and what is refused."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxprune.calibration import array_files as arrays_module
from onnxprune.calibration.samples import read_samples
from onnxprune.calibration.streams import Samples
from onnxprune.errors import CalibrationError
from onnxprune.model.inputs import InputSpec

FLOAT = np.dtype(np.float32)
INT = np.dtype(np.int64)

FREE = (InputSpec("x", FLOAT, ("N", 2)),)
FIXED = (InputSpec("x", FLOAT, (4, 2)),)
TWO = (InputSpec("ids", INT, ("batch", "sequence")), InputSpec("x", FLOAT, ("batch", 2)))


def rows(count: int, start: int = 0) -> np.ndarray:
    """The rows (0, 0), (1, 1), ... so that each tells its number."""
    numbers = np.arange(start, start + count, dtype=np.float32)
    return np.stack([numbers, numbers], axis=1)


def numbers(samples: Samples, size: int) -> list[list[int]]:
    return [feed["x"][:, 0].astype(int).tolist() for feed in samples.batches(size)]


def refusal(source: object, specs: tuple[InputSpec, ...] = FREE) -> str:
    """What is said by the time a first pass is over."""
    with pytest.raises(CalibrationError) as caught:
        list(read_samples(source, specs).batches(2))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files appear during a test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Reader:
    """onnxruntime's CalibrationDataReader protocol."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = feeds
        self.remaining = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.remaining, None)


class Rewindable(Reader):
    def rewind(self) -> None:
        self.remaining = iter(self.feeds)


class TestArrays:
    def test_they_are_cut_along_the_first_axis(self) -> None:
        samples = read_samples({"x": rows(5)}, FREE)
        assert samples.count == 5
        assert numbers(samples, 2) == [[0, 1], [2, 3], [4]]
        assert numbers(samples, 100) == [[0, 1, 2, 3, 4]]

    def test_a_fixed_batch_is_kept_and_the_remainder_left_out(self) -> None:
        samples = read_samples({"x": rows(11)}, FIXED)
        assert samples.count == 8
        assert numbers(samples, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]

    def test_less_than_a_fixed_batch_is_refused(self) -> None:
        assert "3 sample(s), but the model takes batches of exactly 4" in refusal(
            {"x": rows(3)}, FIXED
        )

    def test_one_more_axis_is_a_stack_of_whole_feeds(self) -> None:
        samples = read_samples({"x": np.stack([rows(4), rows(4, 10)])}, FIXED)
        assert samples.count == 2
        assert numbers(samples, 1) == [[0, 1, 2, 3], [10, 11, 12, 13]]

    def test_stacks_go_together_with_rows_of_batch_one(self) -> None:
        specs = (InputSpec("x", FLOAT, (1, 2)), InputSpec("anchors", FLOAT, (3, 4)))
        samples = read_samples({"x": rows(2), "anchors": np.zeros((2, 3, 4), np.float32)}, specs)
        assert [feed["anchors"].shape for feed in samples.batches(8)] == [(3, 4), (3, 4)]
        assert numbers(samples, 8) == [[0], [1]]

    def test_a_scalar_is_the_same_in_every_batch(self) -> None:
        specs = (*FREE, InputSpec("scale", FLOAT, ()))
        samples = read_samples({"x": rows(3), "scale": np.float32(7)}, specs)
        assert [float(feed["scale"]) for feed in samples.batches(2)] == [7, 7]

    def test_an_array_serves_a_model_with_one_input(self) -> None:
        assert numbers(read_samples(rows(2), FREE), 1) == [[0], [1]]
        assert "has the inputs 'ids', 'x'" in refusal(rows(2), TWO)

    def test_inputs_keep_the_order_of_the_model(self) -> None:
        source = {"x": rows(3), "ids": np.zeros((3, 9), np.int64)}
        (feed,) = read_samples(source, TWO).batches(3)
        assert list(feed) == ["ids", "x"]

    def test_an_unknown_rank_takes_anything(self) -> None:
        specs = (InputSpec("x", FLOAT, None),)
        assert numbers(read_samples({"x": rows(3)}, specs), 2) == [[0, 1], [2]]


class TestFiles:
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_npz(
        self, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
    ) -> None:
        if not in_memory:
            monkeypatch.setattr(arrays_module, "_IN_MEMORY", 0)
        np.savez_compressed(tmp_path / "data.npz", x=rows(3), ids=np.zeros((3, 9), np.int64))
        samples = read_samples(tmp_path / "data.npz", TWO)
        assert samples.count == 3
        assert numbers(samples, 2) == numbers(samples, 2) == [[0, 1], [2]]
        del samples
        gc.collect()
        assert list(scratch.iterdir()) == []

    def test_npy(self, tmp_path: Path) -> None:
        np.save(tmp_path / "data.npy", rows(3))
        assert numbers(read_samples(str(tmp_path / "data.npy"), FREE), 2) == [[0, 1], [2]]

    def test_a_folder_of_npy(self, tmp_path: Path) -> None:
        for number in range(3):
            np.save(tmp_path / f"{number}.npy", rows(2, 2 * number))
        assert numbers(read_samples(tmp_path, FREE), 4) == [[0, 1, 2, 3], [4, 5]]
        assert "has the inputs 'ids', 'x'" in refusal(tmp_path, TWO)

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_a_folder_of_npz_is_one_stream(
        self, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
    ) -> None:
        if not in_memory:
            monkeypatch.setattr(arrays_module, "_IN_MEMORY", 0)
        folder = tmp_path / "data"
        folder.mkdir()
        for number in range(5):
            np.savez(folder / f"{number}.npz", x=rows(1, number))
        assert numbers(read_samples(folder, FREE), 2) == [[0, 1], [2, 3], [4]]
        assert numbers(read_samples(folder, FIXED), 2) == [[0, 1, 2, 3]]
        assert read_samples(folder, FIXED).count == 4
        assert list(scratch.iterdir()) == []

    def test_files_of_other_lengths_get_batches_of_their_own(self, tmp_path: Path) -> None:
        for number, length in enumerate((7, 7, 9)):
            ids = np.full((1, length), number)
            np.savez(tmp_path / f"{number}.npz", x=rows(1, number), ids=ids)
        samples = read_samples(tmp_path, TWO)
        assert [feed["ids"].shape for feed in samples.batches(8)] == [(2, 7), (1, 9)]

    def test_onnx_test_data_in_numerical_order(self, tmp_path: Path) -> None:
        for number in (10, 9):
            folder = tmp_path / f"test_data_set_{number}"
            folder.mkdir()
            for index, array in enumerate((np.zeros((1, 3), np.int64), rows(1, number))):
                tensor = onnx.numpy_helper.from_array(array)
                (folder / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
        assert numbers(read_samples(tmp_path, TWO), 1) == [[9], [10]]
        assert numbers(read_samples(tmp_path / "test_data_set_9", TWO), 1) == [[9]]

    def test_onnx_test_data_may_name_its_inputs(self, tmp_path: Path) -> None:
        arrays = (("x", rows(1)), ("ids", np.zeros((1, 3), np.int64)))
        for index, (name, array) in enumerate(arrays):
            tensor = onnx.numpy_helper.from_array(array, name)
            (tmp_path / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
        (feed,) = read_samples(tmp_path, TWO).batches(1)
        assert feed["ids"].shape == (1, 3)

    def test_a_function_of_a_script_is_called_anew_for_each_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "neighbour_of_script.py").write_text("WIDTH = 2\n")
        (tmp_path / "script.py").write_text(
            "import numpy as np\n"
            "from neighbour_of_script import WIDTH\n"
            "def samples():\n"
            "    for number in range(3):\n"
            "        yield {'x': np.full((1, WIDTH), number, np.float32)}\n"
        )
        monkeypatch.chdir(tmp_path)
        samples = read_samples("script.py:samples", FREE)
        assert numbers(samples, 8) == numbers(samples, 8) == [[0], [1], [2]]


class TestFeeds:
    def test_dictionaries_are_used_as_they_come(self) -> None:
        samples = read_samples([{"x": rows(3)}, {"x": rows(1, 3)}], FREE)
        assert samples.count is None
        assert numbers(samples, 1) == [[0, 1, 2], [3]]
        assert samples.count == 4

    def test_an_iterator_is_spooled_once_and_cleaned_up(self, scratch: Path) -> None:
        samples = read_samples(({"x": rows(1, n)} for n in range(3)), FREE)
        assert samples.count == 3
        assert numbers(samples, 1) == numbers(samples, 1) == [[0], [1], [2]]
        assert len(list(scratch.iterdir())) == 1
        del samples
        gc.collect()
        assert list(scratch.iterdir()) == []

    @pytest.mark.parametrize(
        "array",
        [
            np.array([["a"], ["ü"]], object),
            np.ones((2, 1), ml_dtypes.bfloat16),
            np.ones((2, 1), np.bool_),
        ],
    )
    def test_spooling_keeps_every_element_type(self, array: np.ndarray) -> None:
        specs = (InputSpec("x", array.dtype, ("N", 1)),)
        (feed,) = read_samples(iter([{"x": array}]), specs).batches(1)
        assert feed["x"].dtype == array.dtype
        assert feed["x"].tolist() == array.tolist()

    @pytest.mark.parametrize("kind", [Reader, Rewindable])
    def test_readers_of_onnxruntime(self, kind: type[Reader]) -> None:
        samples = read_samples(kind([{"x": rows(1, n)} for n in range(3)]), FREE)
        assert numbers(samples, 1) == numbers(samples, 1) == [[0], [1], [2]]

    def test_functions(self) -> None:
        def three() -> Iterator[dict[str, np.ndarray]]:
            yield from ({"x": rows(1, n)} for n in range(3))

        samples = read_samples(three, FREE)
        assert numbers(samples, 1) == numbers(samples, 1) == [[0], [1], [2]]

    def test_samples_pass_through(self) -> None:
        samples = read_samples(rows(1), FREE)
        assert read_samples(samples, FREE) is samples


class TestTake:
    def test_rows_come_as_one_feed(self) -> None:
        assert read_samples(rows(9), FREE).take(3)["x"][:, 0].tolist() == [0, 1, 2]
        assert read_samples(rows(2), FREE).take(3)["x"][:, 0].tolist() == [0, 1]

    def test_feeds_are_joined_where_their_shapes_allow(self) -> None:
        feeds = [{"x": rows(2)}, {"x": rows(2, 2)}, {"x": rows(2, 4)}]
        assert read_samples(feeds, FREE).take(3)["x"][:, 0].tolist() == [0, 1, 2]

    def test_a_fixed_batch_stays_whole(self) -> None:
        assert read_samples(rows(8), FIXED).take(1)["x"].shape == (4, 2)

    def test_feeds_without_a_common_axis_stay_whole(self) -> None:
        specs = (InputSpec("x", FLOAT, ("N", 2)), InputSpec("t", FLOAT, ("M", 1)))
        feed = read_samples([{"x": rows(4), "t": [[1.0]]}], specs).take(2)
        assert feed["x"].shape == (4, 2)


class TestCasts:
    def test_lossless_ones_happen_silently(self) -> None:
        (feed,) = read_samples({"x": rows(1).astype(np.float64)}, FREE).batches(1)
        assert feed["x"].dtype == np.float32
        source = {"ids": np.zeros((1, 4), np.int32), "x": rows(1)}
        (feed,) = read_samples(source, TWO).batches(1)
        assert feed["ids"].dtype == np.int64

    def test_numbers_that_do_not_fit_are_refused(self) -> None:
        assert "a number too large for float32 in sample 1" in refusal(
            {"x": np.array([[0, 0], [0, 1e300]])}
        )
        specs = (InputSpec("x", np.dtype(np.int32), ("N", 2)),)
        assert "a number outside int32 in sample 0" in refusal({"x": np.full((1, 2), 2**40)}, specs)

    @pytest.mark.parametrize(
        ("array", "spec", "reason"),
        [
            (np.zeros((1, 2), np.float32), INT, "got float32, expected int64"),
            (np.zeros((1, 2), np.uint8), FLOAT, "got uint8, expected float32"),
            (np.zeros((1, 2), np.bool_), FLOAT, "got bool, expected float32"),
            (np.array([["a", "b"]]), FLOAT, "expected float32"),
            (np.array([[1, None]], object), FLOAT, "got Python objects"),
        ],
    )
    def test_other_kinds_are_refused(self, array: np.ndarray, spec: np.dtype, reason: str) -> None:
        specs = (InputSpec("x", spec, ("N", 2)),)
        assert reason in refusal({"x": array}, specs)
        assert reason in refusal([{"x": array}], specs)


class TestRefused:
    def test_unknown_names(self, tmp_path: Path) -> None:
        source = {"x": rows(1), "labels": np.zeros(1)}
        np.savez(tmp_path / "data.npz", **source)
        for each in (source, [source], tmp_path / "data.npz"):
            assert "'labels' is not an input of the model; give exactly 'x'" in refusal(each)

    def test_missing_names(self) -> None:
        assert "nothing for the input 'ids'" in refusal({"x": rows(1)}, TWO)
        assert "nothing for the input 'ids'" in refusal([{"x": rows(1)}], TWO)

    def test_wrong_dimensions(self) -> None:
        bad = np.zeros((1, 3), np.float32)
        assert "got the shape [1, 3], expected [N, 2]" in refusal({"x": bad})
        assert "got the shape [1, 3], expected [N, 2]" in refusal([{"x": bad}])

    def test_a_missing_axis_of_samples(self) -> None:
        assert "add the axis of samples in front" in refusal({"x": np.zeros(2, np.float32)})

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_name_their_sample(self, bad: float) -> None:
        array = rows(5)
        array[3, 1] = bad
        assert "'x' holds NaN or infinity in sample 3" in refusal({"x": array})
        assert "'x' holds NaN or infinity in sample 3" in refusal([{"x": r[None]} for r in array])

    def test_different_numbers_of_samples(self) -> None:
        source = {"x": rows(3), "ids": np.zeros((2, 4), np.int64)}
        assert "different numbers of samples: 2 for 'ids', 3 for 'x'" in refusal(source, TWO)

    def test_no_samples_at_all(self, tmp_path: Path) -> None:
        np.save(tmp_path / "none.npy", rows(0))
        assert "no samples" in refusal({"x": rows(0)})
        assert "no samples" in refusal(tmp_path / "none.npy")
        assert "no samples" in refusal([])
        assert "no samples" in refusal(iter([]))

    def test_missing_and_foreign_files(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(tmp_path / "none.npz")
        assert "neither .npz nor .npy files" in refusal(tmp_path)
        (tmp_path / "data.csv").write_text("1,2")
        assert "neither .npz" in refusal(tmp_path / "data.csv")
        for name in ("data.npz", "data.npy"):
            (tmp_path / name).write_bytes(b"damaged")
            assert "cannot be read" in refusal(tmp_path / name)

    def test_damaged_test_data(self, tmp_path: Path) -> None:
        (tmp_path / "input_0.pb").write_bytes(b"\xff\xff damaged")
        assert "input_0.pb: is no tensor" in refusal(tmp_path)

    def test_files_are_never_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return (pytest.fail, ("unpickled",))

        bomb = np.array([[Bomb(), Bomb()]], object)
        np.save(tmp_path / "data.npy", bomb, allow_pickle=True)
        np.savez(tmp_path / "data.npz", x=bomb)
        for specs in (FREE, (InputSpec("x", np.dtype(object), ("N", 2)),)):
            refusal(tmp_path / "data.npy", specs)
            refusal(tmp_path / "data.npz", specs)

    def test_functions_that_fail_or_give_something_else(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "def fails():\n    yield {'x': [[0.0, 0.0]]}\n    raise KeyError('lost')\n"
            "def arrays():\n    yield [1, 2]\n"
            "def nothing():\n    pass\n"
        )
        assert "KeyError: 'lost'" in refusal(f"{script}:fails")
        assert "expected a dictionary {'x': array}, got list" in refusal(f"{script}:arrays")
        assert "NoneType" in refusal(f"{script}:nothing")
        assert "has no function 'absent'" in refusal(f"{script}:absent")
        assert "name its function" in refusal(script)
        assert "no file" in refusal(f"{tmp_path}/none.py:function")
        script.write_text("1 / 0\n")
        assert "ZeroDivisionError: division by zero" in refusal(f"{script}:fails")

    def test_inputs_that_are_no_tensors(self) -> None:
        assert "not a tensor" in refusal(rows(1), (InputSpec("x", None, None),))

    def test_other_objects(self) -> None:
        assert "not int" in refusal(3)
