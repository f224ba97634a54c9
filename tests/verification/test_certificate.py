"""The certificate and the gates behind it: what they let pass, and what they stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure, VerificationError
from onnxprune.model.execution import Execution
from onnxprune.model.load import load
from onnxprune.verification.certificate import (
    Certificate,
    _checker_complaint,
    certify,
    check_interface,
    check_result,
    probe,
    tolerance_for,
)

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x) => (float[N, 2] y) { y = Mul(x, w) }"""


def model(*values: float, text: str = NETWORK, dtype: Any = np.float32) -> ir.Model:
    return load(parse(text, {"w": np.array(values, dtype)})).model


def ones(rows: int) -> Mapping[str, NDArray[Any]]:
    return {"x": np.ones((rows, 2), np.float32)}


def computed(model: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, Any]]:
    return Execution(model, ONE_THREAD, optimise=False).run_all(feeds)


def certified(
    original: ir.Model,
    masked: ir.Model,
    sliced: ir.Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
) -> Certificate:
    probed = [probe(one, ONE_THREAD, feeds) for one in (masked, sliced)]
    return certify(computed(original, feeds), *probed, tolerance_for(original))


def checked(
    original: ir.Model, result: ir.Model, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> None:
    check_result(original, result, feeds, computed(original, feeds), ONE_THREAD, 1e-4)


def test_it_measures_the_surgery_and_the_effect_apart() -> None:
    original, masked, sliced = model(1, 4), model(1, 0), model(1.5, 0)
    found = certified(original, masked, sliced, [ones(2), ones(3)])
    assert found.runs == 2
    assert found.error == pytest.approx(0.5)
    assert found.effect == pytest.approx(1.0)
    assert not found.holds


def test_rounding_passes() -> None:
    found = certified(model(1, 4), model(1, 2), model(1, 2 + 1e-5), [ones(2)])
    assert 0 < found.error < found.tolerance == 1e-4
    assert found.holds


def test_the_worst_run_counts() -> None:
    feeds = [ones(2), {"x": np.array([[1, -1]], np.float32)}]
    relu = NETWORK.replace("y = Mul(x, w)", "p = Mul(x, w) y = Relu(p)")
    pair = model(1, 2, text=relu), model(1, -2, text=relu)
    found = certified(pair[0], pair[0], pair[1], feeds[::-1])
    assert found.error == pytest.approx(2.0)


SATURATED = NETWORK.replace("y = Mul(x, w)", "p = Mul(x, w) q = Sigmoid(p) y = Identity(q)")


def test_what_a_sigmoid_rounds_away_is_seen_before_it() -> None:
    good, bad = model(40, 40, text=SATURATED), model(40, 41, text=SATURATED)
    assert computed(good, [ones(2)])[0]["y"].tolist() == computed(bad, [ones(2)])[0]["y"].tolist()
    assert certified(good, good, bad, [ones(2)]).error == pytest.approx(1 / 40)


def test_rounding_behind_a_sigmoid_passes() -> None:
    """The fifth digit of -12 changes the fourth of what the Sigmoid makes of it."""
    good, rounded = model(-12, -12, text=SATURATED), model(-12, -12.0006, text=SATURATED)
    outputs = [computed(one, [ones(2)])[0]["y"] for one in (good, rounded)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4 * outputs[0].max()
    assert certified(good, good, rounded, [ones(2)]).holds
    checked(good, good, [ones(2)])


def test_one_sided_nan_never_passes() -> None:
    root = NETWORK.replace("y = Mul(x, w)", "p = Mul(x, w) y = Sqrt(p)")
    good, bad = model(1, 1, text=root), model(1, -1, text=root)
    assert not certified(good, good, bad, [ones(1)]).holds
    assert certified(bad, bad, bad, [ones(1)]).holds


def test_what_does_not_run_is_no_certificate() -> None:
    broken = model(1, 1)
    broken.graph.initializers["w"].const_value = ir.tensor(np.ones(5, np.float32), name="w")
    with pytest.raises(RuntimeFailure):
        certified(model(1, 1), model(1, 1), broken, [ones(2)])


@pytest.mark.parametrize(
    ("text", "dtype", "wanted"),
    [
        (NETWORK, np.float32, 1e-4),
        (NETWORK.replace("float[", "float16["), np.float16, 2e-2),
        (NETWORK.replace("float[", "double["), np.float64, 1e-4),
    ],
)
def test_half_precision_is_judged_as_such(text: str, dtype: Any, wanted: float) -> None:
    assert tolerance_for(model(1, 2, text=text, dtype=dtype)) == wanted


def test_quantised_graphs_are_judged_as_such() -> None:
    text = NETWORK.replace(
        "y = Mul(x, w)", "p = Mul(x, w) q = QuantizeLinear(p, s) y = DequantizeLinear(q, s)"
    )
    weights = {"w": np.ones(2, np.float32), "s": np.array(0.1, np.float32)}
    assert tolerance_for(load(parse(text, weights)).model) == 2e-2


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("float[N, 2] x)", "float[M, 2] x)", "input"),
        ("float[N, 2] x)", "float[N, K] x)", "input"),
        ("(float[N, 2] y)", "(float[3, 2] y)", "output"),
        ("(float[N, 2] y)", "(float[N, 2] y, float[N, 2] x)", "output"),
    ],
)
def test_the_interface_stays_as_it_is(old: str, new: str, kind: str) -> None:
    assert old in NETWORK
    check_interface(model(1, 1), model(2, 2))
    with pytest.raises(VerificationError, match=f"the result's {kind}s differ"):
        check_interface(model(1, 1), model(1, 1, text=NETWORK.replace(old, new)))


def test_a_changed_interface_does_not_pass_the_gates() -> None:
    renamed = model(1, 2, text=NETWORK.replace("(float[N, 2] y)", "(float[N, two] y)"))
    with pytest.raises(VerificationError, match="the result's outputs differ"):
        checked(model(1, 2), renamed, [ones(2)])


def test_a_sound_result_passes_the_gates() -> None:
    result, feeds = model(1, 0), [ones(2), ones(3)]
    check_result(model(1, 2), result, feeds, computed(result, feeds), ONE_THREAD, 1e-4)


def test_optimisations_must_not_change_the_result() -> None:
    with pytest.raises(VerificationError, match="optimisations change the result by 5"):
        checked(model(1, 2), model(1.5, 2), [{"x": np.array([[2, 0]], np.float32)}])


def test_the_checker_has_to_agree_where_it_did_before() -> None:
    """Nodes in the wrong order: onnxruntime does not mind, the checker does."""
    text = NETWORK.replace("y = Mul(x, w)", "p = Mul(x, w) y = Neg(p)")
    proto = parse(text, {"w": np.ones(2, np.float32)})
    twisted = onnx.ModelProto()
    twisted.CopyFrom(proto)
    twisted.graph.node.reverse()
    good, bad = ir.from_proto(proto), ir.from_proto(twisted)
    with pytest.raises(VerificationError, match=r"onnx\.checker refuses the result"):
        checked(good, bad, [ones(2)])


def test_a_result_has_to_run_with_the_usual_optimisations() -> None:
    broken = model(1, 1)
    broken.graph.initializers["w"].const_value = ir.tensor(np.ones(5, np.float32), name="w")
    with pytest.raises(VerificationError, match=r"onnx\.checker refuses|does not run"):
        checked(model(1, 1), broken, [ones(2)])


def test_what_integers_cost_is_left_to_comparisons() -> None:
    text = NETWORK.replace(
        "y = Mul(x, w)", "p = Mul(x, w) q = QuantizeLinear(p, s) y = DequantizeLinear(q, s)"
    )
    weights = {"w": np.array([1, 2], np.float32), "s": np.array(0.3, np.float32)}
    quantised, plain = load(parse(text, weights)).model, model(1, 2)
    wanted = computed(plain, [ones(2)])
    check_result(plain, quantised, [ones(2)], wanted, ONE_THREAD, 1e-4)
    with pytest.raises(VerificationError, match="optimisations change"):
        check_result(quantised, quantised, [ones(2)], wanted, ONE_THREAD, 1e-4)


def test_large_constants_of_bodies_are_no_complaint() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 2] x, bool q) => (float[N, 900] y)
        { y = If(q) <then_branch = a () => (float[N, 900] t) <float[2, 900] k = {0}>
            { t = MatMul(x, k) },
          else_branch = b () => (float[N, 900] u) { u = MatMul(x, w) }> }"""
    proto = parse(text, {"w": np.ones((2, 900), np.float32)})
    body = proto.graph.node[0].attribute[0].g
    del body.initializer[:]
    body.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 900), np.float32), "k"))
    feeds = [{"x": np.ones((2, 2), np.float32), "q": np.array(True)}]
    one = load(proto).model
    check_result(one, one.clone(), feeds, computed(one, feeds), ONE_THREAD, 1e-4)
    accepted = model(1, 1)
    complaint = _checker_complaint(one)
    assert complaint == _checker_complaint(accepted) == ""
