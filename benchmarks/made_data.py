"""Images and sounds made to train and judge the networks of `train_subjects.py`; numpy alone.

All of it is drawn from the generator that is handed in: the same seed gives the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

PIXELS, TEXTURES = 64, 5
"""Size of an image, and classes of its pixels: the background and four textures."""

WORDS = ("ia", "ai", "ua", "au", "eo", "oe", "iu", "ui", "ie", "uo")
"""Words as vowels that the formants glide between."""

VOWELS = {"a": (750, 1250), "e": (430, 1950), "i": (290, 2250), "o": (460, 900), "u": (320, 800)}
"""First and second formant in Hz."""

RATES = (8000, 16000)
"""Sampling rates in Hz."""

WORD_RATE, WORD_LENGTH, WINDOW_SECONDS = 8000, 4000, 0.128
THIRD_FORMANT, BANDWIDTHS, HARMONICS = 2700, (90.0, 120.0, 200.0), 40
MEL_BANDS, FRAME, HOP = 32, 256, 128


def textured_images(count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Shapes with one of four textures, overlapping one another on a background of soft noise.

    Colours, periods, angles and contrasts are random: only the kind of texture says the class.

    Returns:
        Images float32 [count, 3, 64, 64] and class maps int64 [count, 64, 64], 0 for background.
    """
    images = np.empty((count, 3, PIXELS, PIXELS), np.float32)
    maps = np.zeros((count, PIXELS, PIXELS), np.int64)
    for image, classes in zip(images, maps, strict=True):
        image[:] = _painted(_soft_noise(rng), rng)
        for _ in range(rng.integers(3, 6)):
            kind = int(rng.integers(1, TEXTURES))
            inside = _shape(rng)
            image[:, inside] = _painted(_texture(kind, rng), rng)[:, inside]
            classes[inside] = kind
    images += rng.normal(0, 0.12, images.shape)
    return images, maps


def _turned(rng: np.random.Generator) -> tuple[Any, Any]:
    """Coordinates of the pixels, turned by a random angle about a random place."""
    angle, (down, right) = rng.uniform(0, np.pi), rng.uniform(10, PIXELS - 10, 2)
    rows, columns = np.mgrid[:PIXELS, :PIXELS] + 0.5
    rows, columns = rows - down, columns - right
    return (
        np.cos(angle) * columns + np.sin(angle) * rows,
        np.cos(angle) * rows - np.sin(angle) * columns,
    )


def _shape(rng: np.random.Generator) -> Any:
    """The pixels of an ellipse, a rectangle or a triangle, bool [64, 64]."""
    across, along = _turned(rng)
    across, along = across / rng.uniform(10, 20), along / rng.uniform(10, 20)
    return (
        across**2 + along**2 < 1,
        np.maximum(abs(across), abs(along)) < 0.9,
        (along > -0.8) & (along + 2 * abs(across) < 1),
    )[rng.integers(3)]


def _texture(kind: int, rng: np.random.Generator) -> Any:
    """Stripes, checks, dots or waves, float [64, 64] from -1 to 1."""
    across, along = (2 * np.pi * axis / rng.uniform(5, 9) for axis in _turned(rng))
    kinds: dict[int, Callable[[], Any]] = {
        1: lambda: np.sin(across),
        2: lambda: np.sign(np.sin(across) * np.sin(along)),
        3: lambda: np.where(np.cos(across) + np.cos(along) > 0.7, 1.0, -1.0),
        4: lambda: np.sin(across + 1.6 * np.sin(along / 1.5)),
    }
    return kinds[kind]()


def _soft_noise(rng: np.random.Generator) -> Any:
    """The sum of a few waves of any direction and period, float [64, 64] about -1 to 1."""
    waves = [np.sin(2 * np.pi * _turned(rng)[0] / rng.uniform(6, 40)) for _ in range(6)]
    return np.mean(waves, axis=0) * 1.5


def _painted(field: Any, rng: np.random.Generator) -> Any:
    """A field from -1 to 1 between two random colours, float [3, 64, 64]."""
    middle, contrast = rng.uniform(-0.5, 0.5, (3, 1, 1)), rng.uniform(0.15, 0.6, (3, 1, 1))
    return middle + contrast * rng.choice((-1, 1)) * field


def spoken_words(count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Words of gliding vowels by speakers of other pitch, tempo and size of the head, in noise.

    Returns:
        Log-mel spectrograms float32 [count, 1, 32, 30] and the numbers of the words int64 [count].
    """
    labels = rng.integers(len(WORDS), size=count)
    table = np.array([[VOWELS[vowel] for vowel in word] for word in WORDS], np.float32)
    parts = []
    for chosen in np.array_split(labels, -(-count // 64)):
        size = len(chosen)
        # the vowels of a word, moved by the speaker and by the occasion: [size, 2 vowels, 3]
        third = np.full((size, 2, 1), THIRD_FORMANT)
        formants = np.concatenate([table[chosen], third], 2) * rng.uniform(0.84, 1.18, (size, 1, 1))
        formants = formants * rng.normal(1, 0.12, formants.shape)
        length = rng.uniform(0.4, 0.9, (size, 1))
        place = np.linspace(0, 1, WORD_LENGTH, dtype=np.float32)[None]
        progress = (place - rng.uniform(0, 1, (size, 1)) * (1 - length)) / length
        turn = 1 / (1 + np.exp(-(progress - rng.uniform(0.35, 0.65, (size, 1))) * 14))
        tracks = (
            formants[:, 0, :, None] + np.diff(formants, axis=1).transpose(0, 2, 1) * turn[:, None]
        )
        loudness = np.sin(np.pi * np.clip(progress, 0, 1)) ** 0.5
        parts.append(in_noise(voiced(tracks, WORD_RATE, rng) * loudness, (-8, 8), rng))
    return log_mel(np.concatenate(parts)), labels.astype(np.int64)


def windows(count: int, rate: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Windows of 0.128 s with voice, or with something else: hiss, hum, chirps; all in noise.

    Returns:
        Sound float32 [count, 0.128 * rate] and 1 for voice, else 0, int64 [count].
    """
    labels = (rng.random(count) < 0.5).astype(np.int64)
    length = round(WINDOW_SECONDS * rate)
    parts = []
    for chosen in np.array_split(labels, -(-count // 64)):
        size = len(chosen)
        ends = np.array(list(VOWELS.values()), np.float32)[
            rng.integers(len(VOWELS), size=(size, 2))
        ]
        ends = np.concatenate([ends, np.full((size, 2, 1), THIRD_FORMANT)], 2)
        ends = ends * rng.uniform(0.8, 1.2, (size, 1, 1))
        turn = np.linspace(0, 1, length, dtype=np.float32)[None, None]
        tracks = ends[:, 0, :, None] + np.diff(ends, axis=1).transpose(0, 2, 1) * turn
        sound = np.where(
            chosen[:, None] == 1, voiced(tracks, rate, rng), _unvoiced(tracks, rate, rng)
        )
        parts.append(in_noise(sound, (0, 15), rng))
    return np.concatenate(parts), labels


def voiced(tracks: Any, rate: int, rng: np.random.Generator) -> Any:
    """Harmonics of a gliding pitch, as loud as the formants near them make them.

    Args:
        tracks: formants in Hz, float [count, 3, samples].
        rate: samples per second.
        rng: draws pitch and phases.

    Returns:
        Sound float32 [count, samples] of a mean square of one.
    """
    count, _, samples = tracks.shape
    ends = rng.uniform(95, 230, (count, 1)) * rng.uniform(0.85, 1.15, (count, 2))
    pitch = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.linspace(0, 1, samples)
    phase = (2 * np.pi * np.cumsum(pitch, 1) / rate).astype(np.float32)
    pitch = pitch.astype(np.float32)
    sound = np.zeros((count, samples), np.float32)
    for number in range(1, HARMONICS + 1):
        tone = np.sin(number * phase + rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32))
        sound += _envelope(tracks, number * pitch) * tone * (number * pitch < rate / 2)
    return _levelled(sound)


def _envelope(tracks: Any, frequency: Any) -> Any:
    """How loud formants make a frequency: a sum of resonances, float32 [count, samples]."""
    total = np.zeros(frequency.shape, np.float32)
    for place, width in enumerate(BANDWIDTHS):
        distance = (frequency - tracks[:, place]) / width
        total += (0.6**place / (1 + distance * distance)).astype(np.float32)
    return total


def _unvoiced(tracks: Any, rate: int, rng: np.random.Generator) -> Any:
    """Hiss with the spectrum of a vowel, hum of equal harmonics, or chirps: [count, samples]."""
    count, _, samples = tracks.shape
    time = np.arange(samples, dtype=np.float32) / rate
    spectrum = np.fft.rfft(rng.normal(size=(count, samples)))
    frequency = np.broadcast_to(np.fft.rfftfreq(samples, 1 / rate), spectrum.shape)
    hiss = np.fft.irfft(spectrum * _envelope(tracks[..., : spectrum.shape[1]], frequency), samples)
    hum = np.zeros((count, samples))
    pitch = rng.uniform(60, 400, (count, 1))
    for number in range(1, 13):
        hum += np.sin(2 * np.pi * number * pitch * time + rng.uniform(0, 6, (count, 1)))
    chirps = np.zeros((count, samples))
    for _ in range(3):
        start, change = rng.uniform(200, 3000, (count, 1)), rng.uniform(-8000, 8000, (count, 1))
        chirps += np.sin(2 * np.pi * (start + change * time / 2) * time)
    kinds = np.stack([_levelled(hiss), _levelled(hum), _levelled(chirps)])
    return kinds[rng.integers(3, size=count), np.arange(count)]


def _levelled(sound: Any) -> Any:
    """A mean square of one for every row."""
    return (sound / np.sqrt((sound**2).mean(1, keepdims=True) + 1e-9)).astype(np.float32)


def in_noise(sound: Any, decibels: tuple[float, float], rng: np.random.Generator) -> Any:
    """Add white noise so that sounds are this much louder than it, at a random volume."""
    ratio = 10 ** (rng.uniform(*decibels, (len(sound), 1)) / 20)
    volume = 10 ** (rng.uniform(-12, 0, (len(sound), 1)) / 20)
    mixed = sound * ratio + rng.normal(size=sound.shape)
    return (0.1 * volume * mixed / np.sqrt(1 + ratio**2)).astype(np.float32)


def log_mel(sound: Any) -> Any:
    """Logarithmic power in 32 bands of equal width in mel, float32 [count, 1, 32, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME, axis=1)[:, ::HOP]
    power = abs(np.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), axis=2)) ** 2
    hertz = 700 * (10 ** (np.linspace(*_mel((60.0, WORD_RATE / 2)), MEL_BANDS + 2) / 2595) - 1)
    frequency = np.fft.rfftfreq(FRAME, 1 / WORD_RATE)[:, None]
    rising = (frequency - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - frequency) / (hertz[2:] - hertz[1:-1])
    bands = power @ np.clip(np.minimum(rising, falling), 0, None)
    scaled = (np.log10(bands + 1e-5) + 1) / 1.5
    return np.ascontiguousarray(scaled.transpose(0, 2, 1)[:, None], np.float32)


def _mel(hertz: tuple[float, float]) -> tuple[float, float]:
    """Frequencies on the mel scale."""
    low, high = (2595 * np.log10(1 + value / 700) for value in hertz)
    return float(low), float(high)
