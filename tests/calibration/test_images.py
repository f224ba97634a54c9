"""Folders of images as samples: decoded and prepared as the model's input says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune import Images
from onnxprune.calibration.samples import read_samples
from onnxprune.errors import CalibrationError, InputError
from onnxprune.model.inputs import InputSpec

Image = pytest.importorskip("PIL.Image")
FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)


def spec(*shape: int | str | None, dtype: np.dtype = FLOAT) -> tuple[InputSpec, ...]:
    return (InputSpec("image", dtype, shape),)


def colour(red: int, green: int, blue: int, size: tuple[int, int] = (8, 6)) -> object:
    return Image.new("RGB", size, (red, green, blue))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one of them in a folder of its own, and a file that is none."""
    (tmp_path / "second").mkdir()
    colour(10, 20, 30).save(tmp_path / "a.png")
    colour(50, 60, 70).save(tmp_path / "second" / "b.PNG")
    (tmp_path / "notes.md").write_text("no image")
    return tmp_path


def only(images: Images, specs: tuple[InputSpec, ...]) -> np.ndarray:
    (feed,) = read_samples(images, specs).batches(100)
    return feed["image"]


class TestLayout:
    @pytest.mark.parametrize("shape", [("N", 3, 6, 8), (None, 3, "H", "W"), ("N", None, 6, 8)])
    def test_channels_first(self, folder: Path, shape: tuple[int | str | None, ...]) -> None:
        found = only(Images(folder, size="8x6"), spec(*shape))
        assert found.shape == (2, 3, 6, 8)
        assert found.dtype == FLOAT
        assert found[0, :, 0, 0].tolist() == [10, 20, 30]
        assert found[1, :, 5, 7].tolist() == [50, 60, 70]

    def test_channels_last(self, folder: Path) -> None:
        found = only(Images(folder), spec("N", 6, 8, 3))
        assert found.shape == (2, 6, 8, 3)
        assert found[0, 0, 0].tolist() == [10, 20, 30]

    def test_as_asked_where_the_model_leaves_it_open(self, folder: Path) -> None:
        images = Images(folder, size=(8, 6), layout="NHWC")
        assert only(images, spec("N", "a", "b", "c")).shape == (2, 6, 8, 3)

    def test_grey(self, folder: Path) -> None:
        assert only(Images(folder), spec("N", 1, 6, 8)).shape == (2, 1, 6, 8)

    def test_a_fixed_batch(self, folder: Path) -> None:
        feeds = list(read_samples(Images(folder), spec(1, 3, 6, 8)).batches(32))
        assert [feed["image"].shape for feed in feeds] == [(1, 3, 6, 8)] * 2


class TestValues:
    def test_normalised(self, folder: Path) -> None:
        found = only(Images(folder, mean=127, std=128), spec("N", 3, 6, 8))
        np.testing.assert_allclose(found[0, :, 0, 0], [(c - 127) / 128 for c in (10, 20, 30)])

    @pytest.mark.parametrize("mean", ["0.1/0.2/0.3", (0.1, 0.2, 0.3)])
    @pytest.mark.parametrize("scale", ["1/255", 1 / 255])
    def test_each_channel_for_itself(self, folder: Path, mean: object, scale: object) -> None:
        images = Images(folder, scale=scale, mean=mean, std=(1, 2, 4))
        wanted = [(10 / 255 - 0.1) / 1, (20 / 255 - 0.2) / 2, (30 / 255 - 0.3) / 4]
        found = only(images, spec("N", 3, 6, 8))
        np.testing.assert_allclose(found[0, :, 0, 0], wanted, rtol=1e-5)

    def test_blue_first(self, folder: Path) -> None:
        found = only(Images(folder, order="bgr"), spec("N", 3, 6, 8))
        assert found[0, :, 0, 0].tolist() == [30, 20, 10]

    def test_bytes(self, folder: Path) -> None:
        found = only(Images(folder), spec("N", 6, 8, 3, dtype=BYTE))
        assert found.dtype == BYTE
        assert found[0, 0, 0].tolist() == [10, 20, 30]


class TestSize:
    """A wide image, red on the left, green in the middle, blue on the right."""

    @pytest.fixture
    def wide(self, tmp_path: Path) -> Path:
        image = colour(0, 255, 0, (24, 8))
        image.paste((255, 0, 0), (0, 0, 8, 8))
        image.paste((0, 0, 255), (16, 0, 24, 8))
        image.save(tmp_path / "wide.png")
        return tmp_path

    def test_stretched(self, wide: Path) -> None:
        found = only(Images(wide), spec("N", 3, 8, 8))[0]
        assert found[:, 4, 0].tolist() == [255, 0, 0]
        assert found[:, 4, 7].tolist() == [0, 0, 255]

    def test_cropped(self, wide: Path) -> None:
        found = only(Images(wide, fit="crop"), spec("N", 3, 8, 8))[0]
        assert (found[1] > 200).mean() > 0.7
        assert found[:, 4, 4].tolist() == [0, 255, 0]

    def test_padded(self, wide: Path) -> None:
        found = only(Images(wide, fit="pad"), spec("N", 3, 24, 24))[0]
        assert found[:, 0, 0].tolist() == [114, 114, 114]
        assert found[:, 12, 1].tolist() == [255, 0, 0]
        assert found[:, 12, 22].tolist() == [0, 0, 255]

    def test_turned_as_the_camera_says(self, tmp_path: Path) -> None:
        image = colour(0, 0, 0, (8, 4))
        exif = image.getexif()
        exif[274] = 6  # turn by a quarter
        image.save(tmp_path / "turned.jpg", exif=exif)
        images = Images(tmp_path, fit="pad")
        assert only(images, spec("N", 3, 8, 4)).max() < 20  # nothing is left to pad


class TestCount:
    def test_from_all_over_the_folder(self, tmp_path: Path) -> None:
        for number in range(10):
            colour(number, 0, 0).save(tmp_path / f"{number}.png")
        found = only(Images(tmp_path, count=3), spec("N", 3, 6, 8))
        assert found[:, 0, 0, 0].tolist() == [0, 3, 6]


def refusal(images: Images, specs: tuple[InputSpec, ...]) -> str:
    with pytest.raises(CalibrationError) as caught:
        read_samples(images, specs)
    return str(caught.value)


class TestRefused:
    def test_no_size(self, folder: Path) -> None:
        found = refusal(Images(folder), spec("N", 3, "H", "W"))
        assert "[N, 3, H, W]" in found
        assert "size=224x224" in found

    def test_another_size_than_the_models(self, folder: Path) -> None:
        found = refusal(Images(folder, size="6x8"), spec("N", 3, 6, 8))
        assert "which is size=8x6" in found

    def test_no_images(self, tmp_path: Path) -> None:
        assert "holds no images" in refusal(Images(tmp_path), spec("N", 3, 6, 8))

    def test_damaged_images_are_named(self, folder: Path) -> None:
        (folder / "broken.jpg").write_bytes(b"damaged")
        found = refusal(Images(folder), spec("N", 3, 6, 8))
        assert "broken.jpg: cannot be read as an image" in found
        assert "remove it" in found

    def test_a_model_of_other_inputs(self, folder: Path) -> None:
        assert "takes no images" in refusal(Images(folder), spec("N", 10))
        two = (*spec("N", 3, 6, 8), InputSpec("scale", FLOAT, ("N", 2)))
        assert "module.py:function" in refusal(Images(folder), two)
        assert "5 channels" in refusal(Images(folder), spec("N", 5, 6, 8))

    def test_more_numbers_than_channels(self, folder: Path) -> None:
        found = refusal(Images(folder, mean="1/2/3"), spec("N", 1, 6, 8))
        assert "mean has 3 numbers" in found

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"size": "320"}, "size must be WIDTHxHEIGHT"),
            ({"size": "0x3"}, "size must be a whole number above 0"),
            ({"mean": "a/b/c"}, "mean must be one number"),
            ({"mean": "1/2"}, "mean must be one number"),
            ({"std": 0}, "std must be above 0"),
            ({"scale": "1/0"}, "scale must be"),
            ({"order": "gbr"}, "order must be one of rgb, bgr"),
            ({"fit": "squeeze"}, "fit must be one of stretch, crop, pad"),
            ({"count": 0}, "count must be a whole number above 0"),
        ],
    )
    def test_options_that_cannot_be(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(InputError, match=words):
            Images("folder", **options)

    def test_without_pillow_the_extra_is_named(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "PIL", None)
        with pytest.raises(InputError, match=r"pip install 'onnxprune\[images\]'"):
            read_samples(Images(folder), spec("N", 3, 6, 8))


class TestAdvice:
    """A folder of images without a word on how they are prepared."""

    @pytest.mark.parametrize(
        ("specs", "words"),
        [
            (spec(1, 3, 240, 320), "--images size=320x240,mean=127,std=128,rgb"),
            (spec("N", 28, 28, 1), "--images size=28x28,mean=127,std=128 "),
            (spec("N", 3, "H", "W"), "--images size=224x224,mean=127,std=128,rgb"),
            (spec("N", 64, 48, 3, dtype=BYTE), "--images size=48x64,rgb"),
            (spec("N", 7), "takes no images"),
        ],
    )
    def test_it_names_the_option(
        self, folder: Path, specs: tuple[InputSpec, ...], words: str
    ) -> None:
        with pytest.raises(CalibrationError) as caught:
            read_samples(folder, specs)
        assert words in str(caught.value)
