"""How far two outputs are apart, for every kind of output a runtime returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.verification.comparison import largest_difference, relative_difference

INF, NAN = np.inf, np.nan


def array(*values: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("reference", "other", "wanted"),
    [
        pytest.param(array(1, -4), array(1, -4), 0.0, id="equal"),
        pytest.param(array(1, -4), array(2, -4), 0.25, id="relative to the largest magnitude"),
        pytest.param(array(0, 0), array(0, 0.5), 0.5, id="absolute where the reference is zero"),
        pytest.param(array(), array(), 0.0, id="nothing"),
        pytest.param(np.float32(2), np.float32(3), 0.5, id="scalar"),
        pytest.param(array(1, 2), array(1, 2, 3), INF, id="another shape"),
        pytest.param(array(1, 2), array(1, 2)[:, None], INF, id="another rank"),
        pytest.param(array(1, 2), None, INF, id="missing"),
        pytest.param(array(1, NAN), array(1, NAN), 0.0, id="NaN in both"),
        pytest.param(array(4, NAN), array(5, NAN), 0.25, id="NaN in both hides nothing"),
        pytest.param(array(1, NAN), array(1, 2), INF, id="NaN on the left"),
        pytest.param(array(1, 2), array(1, NAN), INF, id="NaN on the right"),
        pytest.param(array(1, INF), array(1, INF), 0.0, id="infinite in both"),
        pytest.param(array(1, INF), array(1, -INF), INF, id="opposite infinities"),
        pytest.param(array(1, INF), array(1, NAN), INF, id="infinite is not NaN"),
        pytest.param(array(1, INF), array(1, 2), INF, id="infinite on the left"),
        pytest.param(array(NAN, INF), array(NAN, INF), 0.0, id="nothing finite"),
        pytest.param(array(1, 2, 3, 4, dtype=int), array(1, 2, 3, 9, dtype=int), 0.25, id="int"),
        pytest.param(array(1, 0, dtype=bool), array(1, 1, dtype=bool), 0.5, id="bool"),
        pytest.param(np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5, id="strings"),
        pytest.param(array(2, 4, dtype=np.float16), array(2, 3), 0.25, id="half"),
        pytest.param([array(2), array(4)], [array(2), array(5)], 0.25, id="sequence"),
        pytest.param([array(2)], [array(2), array(5)], INF, id="longer sequence"),
        pytest.param([array(2)], array(2), INF, id="sequence and tensor"),
        pytest.param([], [], 0.0, id="empty sequence"),
        pytest.param([{1: 2.0, 2: 4.0}], [{1: 2.0, 2: 3.0}], 0.25, id="maps, value by value"),
        pytest.param({"a": 1.0}, {"b": 1.0}, INF, id="other keys"),
        pytest.param({"a": array(1)}, [array(1)], INF, id="map and sequence"),
    ],
)
def test_relative_difference(reference: Any, other: Any, wanted: float) -> None:
    assert relative_difference(reference, other) == pytest.approx(wanted)


def test_the_worst_output_counts() -> None:
    reference = {"a": array(1, 2), "b": array(10)}
    assert largest_difference(reference, {"a": array(1, 2), "b": array(11)}) == pytest.approx(0.1)
    assert largest_difference(reference, {"a": array(1, 1), "b": array(11)}) == pytest.approx(0.5)


def test_a_missing_output_is_infinitely_wrong() -> None:
    assert largest_difference({"a": array(1), "b": array(1)}, {"a": array(1)}) == INF


def test_small_outputs_may_count_as_larger() -> None:
    near = largest_difference(
        {"a": array(1), "b": array(10)}, {"a": array(1), "b": array(11)}, {"b": 100.0}
    )
    assert near == pytest.approx(0.01)
