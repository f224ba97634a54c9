"""Values of constants, computed ones included."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import parse

from onnxprune.model.load import load
from onnxprune.model.observe import ConstantValues, constants_of

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 3] x) => (float[N, 4] y)
    { q = Constant<value = int8[2] {10, -20}>()
      scaled = DequantizeLinear(q, s)
      turned = Transpose<perm = [1, 0]>(w)
      same = Identity(turned)
      upper, lower = Split<axis = 1>(same, halves)
      whole = Concat<axis = 1>(lower, upper)
      twice = Mul(whole, whole)
      h = MatMul(x, whole)
      y = Relu(h) }"""


@pytest.fixture
def values() -> ConstantValues:
    weights = {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "halves": np.array([1, 3])}
    weights["s"] = np.array(0.5, np.float32)
    model = load(parse(NETWORK, weights)).model
    return ConstantValues(model, constants_of(model.graph))


def test_stored_ones_are_read(values: ConstantValues) -> None:
    assert values["w"].shape == (4, 3)
    assert values["q"].tolist() == [10, -20]
    assert "w" in values
    assert "turned" not in values


def test_computed_ones_are_computed(values: ConstantValues) -> None:
    turned = np.arange(12, dtype=np.float32).reshape(4, 3).T
    np.testing.assert_array_equal(values["same"], turned)
    np.testing.assert_array_equal(values["lower"], turned[:, 1:])
    whole = np.concatenate([turned[:, 1:], turned[:, :1]], axis=1)
    np.testing.assert_array_equal(values["whole"], whole)
    np.testing.assert_array_equal(values["twice"], whole**2)
    assert values["scaled"].tolist() == [5.0, -10.0]


@pytest.mark.parametrize("name", ["x", "h", "y", "nothing"])
def test_what_depends_on_the_input_is_no_constant(values: ConstantValues, name: str) -> None:
    with pytest.raises(KeyError):
        values[name]
