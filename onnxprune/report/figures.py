"""Numbers, names and bars as people read them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from onnxprune.cost.kinds import KINDS

_BAR = 10
_FACTORS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """Return three significant digits with k, M, G or T; below a thousand the number itself."""
    for factor, letter in _FACTORS:
        # 999 950 is 1 M, not 1000 k
        if number >= factor * 0.9995:
            return f"{_three(number / factor)} {letter}"
    return f"{number:.0f}"


def size(number: int) -> str:
    """Return a number of bytes, in decimal units."""
    text = count(number)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def milliseconds(seconds: float) -> str:
    """Return a duration with three significant digits."""
    return f"{_three(seconds * 1e3)} ms"


def durations(seconds: float) -> str:
    """Return how long a run took."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage, "-" for none."""
    if fraction is None:
        return "-"
    return f"{fraction * 100:.{0 if abs(fraction) >= 9.995 else 1}f} %"


def fine_percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with three significant digits, "-" for none."""
    return "-" if fraction is None else f"{fraction * 100:.3g} %"


def quality_value(value: float, unit: str) -> str:
    """Return the value of a measure of quality."""
    return percent(value / 100) if unit == "%" else f"{value:.4g}"


def significant(number: float | None) -> str:
    """Return three significant digits, "-" for none."""
    if number is None:
        return "-"
    return "infinite" if math.isinf(number) else f"{number:.3g}"


def decimals(number: float | None, digits: int = 4) -> str:
    """Return a number with so many digits behind the point, "-" for none."""
    return "-" if number is None else f"{number:.{digits}f}"


def share(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0


def bar(fraction: float, letter: str = "#", length: int = _BAR) -> str:
    """Return a bar of the given part of the full length; anything above zero shows."""
    return letter * (max(1, round(min(fraction, 1.0) * length)) if fraction > 0 else 0)


def printable(name: str, width: int | None = None) -> str:
    """Return a name without control characters, its middle left out when it is too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    if width is None or len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def _three(number: float) -> str:
    """Three significant digits, without an exponent."""
    if number == 0:
        return "0"
    if number >= 100:
        return f"{number:.0f}"
    digits = 2
    while digits < 9 and number * 10**digits < 99.5:
        digits += 1
    return f"{number:.{digits if number < 10 else 1}f}"


_LABELS = {"channels": "channels", **{kind.name: kind.label for kind in KINDS}}


def kind_label(name: str) -> str:
    """Return what tables call a kind of target; the name itself for an unknown kind."""
    return _LABELS.get(name, name)


_PLAIN = (str, int, type(None))


def json_text(data: Any) -> str:
    """Return JSON (RFC 8259, so null for what it has no number for), ending in a newline.

    Arrays and their scalars become lists and numbers; anything else that is no data, its text.
    """
    return json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, (set, frozenset)):
        return [_finite(value) for value in sorted(data, key=str)]
    if isinstance(data, (np.ndarray, np.generic)):
        return _finite(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if isinstance(data, _PLAIN) else str(data)


def svg_text(text: str) -> str:
    """Text that is safe in elements and attributes of an SVG; lines stay lines."""
    return escape("\n".join(map(printable, text.split("\n"))), {'"': "&quot;"})
