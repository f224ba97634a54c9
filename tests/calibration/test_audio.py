"""Folders of .wav files as samples: one rate, one channel, windows."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import Audio, ClosedLoop
from onnxprune.calibration.samples import model_samples, read_samples
from onnxprune.errors import CalibrationError, InputError
from onnxprune.model.inputs import InputSpec
from onnxprune.model.runtime import Runtime

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def spec(*shape: int | str | None, name: str = "input", dtype: np.dtype = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


def write(path: Path, levels: np.ndarray, rate: int = 100, width: int = 2) -> None:
    """Write levels of -1 to 1, [samples] or [samples, channels]."""
    whole = np.round(levels * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    else:
        flat = whole.astype("<i8").reshape(-1).view(np.uint8).reshape(-1, 8)[:, :width]
        data = flat.tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((levels.shape[1] if levels.ndim > 1 else 1, width, rate, 0, "NONE", ""))
        file.writeframes(data)


RAMP = np.linspace(-1, 1, 50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """50 samples and 8 samples."""
    (tmp_path / "wav").mkdir()
    write(tmp_path / "wav" / "a.wav", RAMP)
    write(tmp_path / "wav" / "b.WAV", RAMP[:8])
    return tmp_path / "wav"


@pytest.mark.parametrize("shape", [("N", 20), (1, 20), ("N", "time"), ("N", 1, 20), (None, 20, 1)])
def test_windows_follow_each_other(folder: Path, shape: tuple[int | str | None, ...]) -> None:
    length = None if 20 in shape else 20
    samples = read_samples(Audio(folder, rate=100, length=length), (spec(*shape),))
    assert samples.count == 3
    feeds = [feed["input"] for feed in samples.batches(8)]
    assert feeds[0].shape[1:] == tuple(20 if n in (20, "time") else 1 for n in shape[1:])
    windows = np.concatenate(feeds).reshape(3, 20)
    np.testing.assert_allclose(windows[:2].reshape(-1), RAMP[:40], atol=1e-4)
    np.testing.assert_allclose(windows[2], np.pad(RAMP[:8], (0, 12)), atol=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_numbers(tmp_path: Path, width: int) -> None:
    write(tmp_path / "a.wav", RAMP, width=width)
    (feed,) = read_samples(Audio(tmp_path / "a.wav", rate=100), (spec("N", 50),)).batches(1)
    np.testing.assert_allclose(feed["input"][0], RAMP, atol=0.02 if width == 1 else 1e-4)


@pytest.mark.parametrize(("kind", "bits"), [(3, 32), (3, 64), (0xFFFE, 32)])
def test_floating_point_as_audio_libraries_write_it(tmp_path: Path, kind: int, bits: int) -> None:
    data = RAMP.astype(f"<f{bits // 8}").tobytes()
    form = struct.pack("<HHIIHH", kind, 1, 100, 100 * bits // 8, bits // 8, bits)
    if kind == 0xFFFE:
        form += struct.pack("<HHIH14s", 22, bits, 4, 3, bytes(14))
    chunks = b"".join(
        name + len(text).to_bytes(4, "little") + text + bytes(len(text) % 2)
        for name, text in ((b"fmt ", form), (b"LIST", b"odd"), (b"data", data))
    )
    size = (4 + len(chunks)).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(b"RIFF" + size + b"WAVE" + chunks)
    (feed,) = read_samples(Audio(tmp_path, rate=100), (spec("N", 50),)).batches(1)
    np.testing.assert_allclose(feed["input"][0], RAMP, atol=1e-6)


def test_numbers_of_16_bits(folder: Path) -> None:
    inputs = (spec("N", 50, dtype=np.dtype(np.int16)),)
    (feed,) = read_samples(Audio(folder, rate=100, count=1), inputs).batches(1)
    assert feed["input"].min() < -32000
    assert feed["input"].max() > 32000


def test_channels_are_averaged(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.stack([RAMP, 0 * RAMP], axis=1))
    (feed,) = read_samples(Audio(tmp_path, rate=100), (spec("N", 50),)).batches(1)
    np.testing.assert_allclose(feed["input"][0], RAMP / 2, atol=1e-4)


@pytest.mark.parametrize("rate", [50, 200])
def test_another_rate_keeps_the_tone(tmp_path: Path, rate: int) -> None:
    seconds = np.arange(400) / 100
    write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 5 * seconds))
    (feed,) = read_samples(Audio(tmp_path, rate=rate), (spec("N", 4 * rate),)).batches(1)
    wanted = 0.5 * np.sin(2 * np.pi * 5 * np.arange(4 * rate) / rate)
    np.testing.assert_allclose(feed["input"][0], wanted, atol=0.01)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scalar_gets_the_rate(folder: Path, shape: tuple[int, ...]) -> None:
    inputs = (spec("N", 20), spec(*shape, name="sr", dtype=INT))
    for feed in read_samples(Audio(folder, rate=100), inputs).batches(2):
        assert feed["sr"].shape == shape
        assert feed["sr"] == 100


def test_files_are_sequences_of_a_closed_loop(folder: Path) -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 18]>
            cell (float[N, 20] input, float[N, 20] state, int64 sr)
                => (float[N, 20] y, float[N, 20] next) {
                r = Cast<to = 1>(sr) y = Mul(input, r) next = Add(input, state)
            }"""
        )
    )
    loop = ClosedLoop(Audio(folder, rate=100), {"next": "state"})
    feeds = list(model_samples(loop, model, Runtime(threads=1)).batches(1))
    assert [int(feed["sr"]) for feed in feeds] == [100] * 3
    np.testing.assert_array_equal(feeds[0]["state"], np.zeros((1, 20)))
    np.testing.assert_array_equal(feeds[1]["state"], feeds[0]["input"])
    np.testing.assert_array_equal(feeds[2]["state"], np.zeros((1, 20)))


class TestRefused:
    @pytest.mark.parametrize(
        "inputs",
        [
            (spec("N", 80, "time"),),
            (spec("N", 3, 8, 8),),
            (spec("N", 20), spec(2, "N", 64, name="state")),
        ],
    )
    def test_other_inputs(self, folder: Path, inputs: tuple[InputSpec, ...]) -> None:
        with pytest.raises(CalibrationError, match="--state OUTPUT=INPUT"):
            read_samples(Audio(folder), inputs)

    def test_no_length_or_another_one(self, folder: Path) -> None:
        with pytest.raises(CalibrationError, match="such as length=16000"):
            read_samples(Audio(folder), (spec("N", "time"),))
        with pytest.raises(CalibrationError, match="give length=20"):
            read_samples(Audio(folder, length=30), (spec("N", 20),))

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match=r"holds no \.wav files"):
            read_samples(Audio(tmp_path), (spec("N", 20),))
        (tmp_path / "a.wav").write_bytes(b"damaged")
        with pytest.raises(CalibrationError, match="convert it to PCM"):
            read_samples(Audio(tmp_path), (spec("N", 20),))

    def test_options_that_cannot_be(self) -> None:
        with pytest.raises(InputError, match="rate must be a whole number above 0"):
            Audio("folder", rate=0.5)

    def test_a_folder_alone_says_which_option_is_missing(self, folder: Path) -> None:
        for path in (folder, folder / "a.wav"):
            with pytest.raises(CalibrationError, match="--audio rate=16000"):
                read_samples(path, (spec("N", 20),))
