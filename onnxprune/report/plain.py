"""Plain data as JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["json_text"]

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
