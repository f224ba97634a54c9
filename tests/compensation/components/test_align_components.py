"""Units become components: the model says the same, and what is dropped costs what is foretold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from helpers.aligning import CONTEXT, align, batches, chain, fetch, sizes, weights
from helpers.oracle import difference, feed, outputs, traced

from onnxprune.compensation.components.align import align_components
from onnxprune.surgery.editable_model import EditableModel

PLAIN = "(float[N, 6] x) => (float[N, 5] y)"
MAP = "(float[N, 4, 7, 7] x) => (float[N, 5, A, B] y)"
CHAINS = {
    "MatMul": (
        f"{PLAIN} {{ m = MatMul(x, w1) h = Add(b1, m) y = MatMul(h, w2) }}",
        weights(w1=(6, 8), b1=(8,), w2=(8, 5)),
    ),
    "Gemm": (
        f"{PLAIN} {{ h = Gemm<transB = 1, alpha = 0.5>(x, w1, b1) y = Gemm<transB = 1>(h, w2) }}",
        weights(w1=(8, 6), b1=(8,), w2=(5, 8)),
    ),
    "weights that are moved": (
        f"{PLAIN} {{ t = Transpose<perm = [1, 0]>(w1) h = MatMul(x, t) u = Transpose(w2) "
        "y = MatMul(h, u) }",
        weights(w1=(8, 6), w2=(5, 8)),
    ),
    "scaled and moved": (
        f"{PLAIN} {{ h = MatMul(x, w1) s = Mul(h, half) n = Neg(s) t = Transpose(n) "
        "u = Transpose(t) y = MatMul(u, w2) }",
        weights(w1=(6, 8), w2=(8, 5)) | {"half": np.array(0.5, np.float32)},
    ),
    "1x1": (
        f"{MAP} {{ h = Conv(x, w1, b1) y = Conv(h, w2, b2) }}",
        weights(w1=(8, 4, 1, 1), b1=(8,), w2=(5, 8, 1, 1), b2=(5,)),
    ),
    "two branches": (
        f"{PLAIN} {{ h = MatMul(x, w1) i = MatMul(x, w3) s = Add(h, i) y = MatMul(s, w2) }}",
        weights(w1=(6, 8), w2=(8, 5), w3=(6, 8)),
    ),
}


@pytest.mark.parametrize("which", CHAINS)
def test_dropping_the_last_components_costs_their_energies(which: str) -> None:
    proto = chain(*CHAINS[which])
    alignment, aligned, subject, feeds = align(proto)
    ((name, (one,)),) = alignment.sets.items()
    group = next(g for g in subject.groups if g.name == name)
    assert sorted(one.units) == list(range(8))
    wanted = fetch(subject.model, ["y"], feeds)
    for kept in range(1, 8):
        full = EditableModel(aligned.model.clone(), aligned.coupling)
        full.blank(group, one.units[kept:])
        got = fetch(full.model, ["y"], feeds)
        apart = np.concatenate([w["y"] - g["y"] for w, g in zip(wanted, got, strict=True)])
        axes = tuple(axis for axis in range(apart.ndim) if axis != 1)
        measured = apart.var(axis=axes, dtype=np.float64).sum()
        assert measured == pytest.approx(one.energies[kept:].sum(), rel=1e-3, abs=1e-5)


def test_no_other_rank_of_a_layer_has_less_error() -> None:
    text, values = CHAINS["MatMul"]
    alignment, _, subject, feeds = align(chain(text, values))
    x = np.concatenate([one["h"] for one in fetch(subject.model, ["h"], feeds)]).astype(float)
    w = values["w2"].T.astype(float)
    singular = np.linalg.svd((x - x.mean(0)) @ w.T, compute_uv=False)[:5]
    (one,) = next(iter(alignment.sets.values()))
    np.testing.assert_allclose(one.energies[:5], singular**2 / len(x), rtol=1e-3)
    np.testing.assert_allclose(one.energies[5:], 0, atol=1e-4)


@pytest.mark.parametrize("pads", ["pads = [1, 1, 1, 1]", "strides = [2, 2]"])
def test_a_kernel_may_read_the_set_padded_or_not(pads: str) -> None:
    text = f"{MAP} {{ h = Conv(x, w1, b1) y = Conv<{pads}>(h, w2) }}"
    alignment, *_ = align(chain(text, weights(w1=(8, 4, 1, 1), b1=(8,), w2=(5, 8, 3, 3))))
    assert sizes(alignment) == [(8, False)]


def test_a_flattened_map_shares_one_matrix() -> None:
    text = """(float[N, 4, 3, 3] x) => (float[N, 5] y)
        { h = Conv(x, w1, b1) f = Flatten(h) y = Gemm(f, w2) }"""
    alignment, *_ = align(chain(text, weights(w1=(8, 4, 1, 1), b1=(8,), w2=(72, 5))))
    assert sizes(alignment) == [(8, False)]


def test_a_linear_residual_stream_is_one_set() -> None:
    """Its layers both make and read the set."""
    text = f"""{MAP} {{ a = Conv(x, w1, b1) c = Conv(a, w2, b2) d = Relu(c) e = Conv(d, w3)
        s = Add(a, e) f = Conv(s, w4) t = Add(s, f) y = Conv(t, w5) }}"""
    shapes = {"w1": (8, 4, 1, 1), "b1": (8,), "w2": (12, 8, 1, 1), "b2": (12,)}
    shapes |= {"w3": (8, 12, 1, 1), "w4": (8, 8, 1, 1), "w5": (5, 8, 1, 1)}
    alignment, *_ = align(chain(text, weights(**shapes)))
    assert sizes(alignment) == [(8, False)]
    assert next(iter(alignment.sets.values()))[0].readers == ("c", "f", "y")
    assert [one.reason for one in alignment.left_alone] == ["Relu does not treat all units alike"]


LEFT_ALONE = {
    "activation": ("h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2)", {}),
    "scaled one by one": ("h = MatMul(x, w1) r = Mul(h, v) y = MatMul(r, w2)", {"v": (8,)}),
    "shifted alike": ("h = MatMul(x, w1) r = Add(h, v) y = MatMul(r, w2)", {"v": (1,)}),
    "gated": ("h = MatMul(x, w1) i = MatMul(x, v) r = Mul(h, i) y = MatMul(r, w2)", {"v": (6, 8)}),
    "squared": ("h = MatMul(x, w1) r = Mul(h, h) y = MatMul(r, w2)", {}),
    "normalised": (
        "h = MatMul(x, w1) r = BatchNormalization(h, v, v, v, u) y = MatMul(r, w2)",
        {"v": (8,), "u": (8,)},
    ),
    "read by an activation too": (
        "h = MatMul(x, w1) r = Sigmoid(h) a = MatMul(r, v) b = MatMul(h, w2) y = Add(a, b)",
        {"v": (8, 5)},
    ),
    "a shared weight": (
        "h = MatMul(x, w1) n = Neg(x) i = MatMul(n, w1) r = Relu(i) a = MatMul(h, w2) "
        "b = MatMul(r, v) y = Add(a, b)",
        {"v": (8, 5)},
    ),
    "rolled into each other": (
        "h = MatMul(x, w1) p, q = Split<axis = 1, num_outputs = 2>(h) n = Neg(q) "
        "t = Concat<axis = 1>(n, p) s = Add(h, t) y = MatMul(s, w2)",
        {},
    ),
}


@pytest.mark.parametrize("which", LEFT_ALONE)
def test_what_is_not_linear_or_not_alike_is_left_alone(which: str) -> None:
    body, more = LEFT_ALONE[which]
    values = weights(w1=(6, 8), w2=(8, 5), **more)
    values |= {"u": np.ones(8, np.float32)} if "u" in more else {}
    alignment, *_ = align(chain(f"{PLAIN} {{ {body} }}", values))
    assert [
        len(one.units) for g in alignment.sets.values() for one in g if len(one.units) == 8
    ] == []


def test_half_precision() -> None:
    text, values = CHAINS["MatMul"]
    proto = chain(
        text.replace("float[", "float16["), {k: v.astype(np.float16) for k, v in values.items()}
    )
    subject = traced(proto)
    full = EditableModel(subject.model.clone(), subject.coupling)
    feeds = [{"x": one["x"].astype(np.float16)} for one in batches(proto)]
    alignment = align_components(full, subject.groups, feeds, CONTEXT)
    assert alignment.sets
    inputs = feed(proto, 2, seed=2)
    assert difference(outputs(proto, inputs), outputs(ir.to_proto(full.model), inputs)) < 2e-2


def test_nothing_varies() -> None:
    text, values = CHAINS["MatMul"]
    values = values | {"w1": np.zeros_like(values["w1"])}
    assert not align(chain(text, values))[0].sets


def test_units_that_were_blanked_before_stay_where_they_are() -> None:
    text, values = CHAINS["MatMul"]
    values = {name: array.copy() for name, array in values.items()}
    for unit in (0, 3):
        values["w1"][:, unit] = values["b1"][unit] = values["w2"][unit] = 0
    alignment, aligned, *_ = align(chain(text, values))
    ((one,),) = alignment.sets.values()
    assert one.units[:5] == (1, 2, 4, 5, 6)
    after = {name: t.numpy() for name, t in aligned.coupling.facts.constants.items()}
    assert not np.concatenate([after["w1"][:, [0, 3]].T, after["w2"][[0, 3]]], axis=1).any()
    assert not after["b1"][[0, 3]].any()
