"""Figures as JSON that every reader takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from onnxprune.report.figures import json_text


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ({"a": (1, 2.5, True, None, "x")}, {"a": [1, 2.5, True, None, "x"]}),
        ([float("nan"), float("inf")], [None, None]),
        (np.float32(0.5), 0.5),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array([np.nan]), [None]),
        (MappingProxyType({3: "x"}), {"3": "x"}),
        ({"b", "a"}, ["a", "b"]),
        (Path("a"), "a"),
    ],
)
def test_data_of_all_kinds(data: Any, read: Any) -> None:
    assert json.loads(json_text(data)) == read
