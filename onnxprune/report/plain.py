"""Plain data as JSON text."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["json_text"]


def json_text(data: Any) -> str:
    """Return JSON (RFC 8259, so null for what it has no number for), ending in a newline."""
    return json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
