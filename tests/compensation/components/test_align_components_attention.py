"""Values, and queries with keys, become components head by head, however attention is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.aligning import CONTEXT, Weights, align, chain, fetch, ints, sizes, weights
from helpers.oracle import difference, feed, outputs
from helpers.paths import MODELS

from onnxprune.compensation.components.align import Aligned, Alignment, align_components
from onnxprune.coupling.cut import Cut
from onnxprune.model.load import load
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed, zero_removed

TOKENS = "(float[N, 5, 12] x) => (float[N, 5, 7] y)"
HEADS, SIZE = 3, 4
APART = {"to_heads": ints(0, 5, HEADS, SIZE), "together": ints(0, 5, HEADS * SIZE)}
SCALE = {"scale": np.array(0.5, np.float32)}
ATTEND = """z = Mul(s, scale) p = Softmax<axis = -1>(z) o = MatMul(p, vh)
    ot = Transpose<perm = [0, 2, 1, 3]>(o) flat = Reshape(ot, together) y = MatMul(flat, wo)"""
PROJECT = """q = MatMul(x, wq) qb = Add(q, bq) k = MatMul(x, wk) kb = Add(bk, k)
    v = MatMul(x, wv) vb = Add(v, bv)"""
SPLIT = """qr = Reshape(qb, to_heads) qh = Transpose<perm = [0, 2, 1, 3]>(qr)
    kr = Reshape(kb, to_heads) vr = Reshape(vb, to_heads)
    vh = Transpose<perm = [0, 2, 1, 3]>(vr)"""
SCORES = "kt = Transpose<perm = [0, 2, 3, 1]>(kr) s = MatMul(qh, kt)"


def projections(width: int = 12, served: int = 12) -> Weights:
    shapes = {"wq": (12, width), "bq": (width,), "wk": (12, served), "bk": (served,)}
    shapes |= {"wv": (12, served), "bv": (served,), "wo": (width, 7)}
    return weights(**shapes) | SCALE


LAYOUTS: dict[str, tuple[str, Weights, int]] = {
    "heads": (f"{PROJECT} {SPLIT} {SCORES} {ATTEND}", projections() | APART, HEADS),
    "fused projections": (
        f"""f = MatMul(x, wqkv) g = Add(f, b) qb, kb, vb = Split<axis = -1>(g, thirds)
        {SPLIT} {SCORES} {ATTEND}""",
        weights(wqkv=(12, 36), b=(36,), wo=(12, 7)) | SCALE | APART | {"thirds": ints(12, 12, 12)},
        HEADS,
    ),
    "fused, one axis of three": (
        f"""f = MatMul(x, wqkv) g = Add(f, b) r = Reshape(g, to_three)
        t = Transpose<perm = [2, 0, 3, 1, 4]>(r) qh = Gather<axis = 0>(t, n0)
        kh = Gather<axis = 0>(t, n1) vh = Gather<axis = 0>(t, n2)
        kt = Transpose<perm = [0, 1, 3, 2]>(kh) s = MatMul(qh, kt) {ATTEND}""",
        weights(wqkv=(12, 36), b=(36,), wo=(12, 7))
        | SCALE
        | APART
        | {f"n{i}": np.array(i, np.int64) for i in range(3)}
        | {"to_three": ints(0, 5, 3, HEADS, SIZE)},
        HEADS,
    ),
    "batch and heads merged": (
        f"""{PROJECT} {SPLIT} kh = Transpose<perm = [0, 2, 3, 1]>(kr)
        qm = Reshape(qh, merged) km = Reshape(kh, merged_t) vm = Reshape(vh, merged)
        sm = MatMul(qm, km) z = Mul(sm, scale) p = Softmax<axis = -1>(z) om = MatMul(p, vm)
        o = Reshape(om, unmerged) ot = Transpose<perm = [0, 2, 1, 3]>(o)
        flat = Reshape(ot, together) y = MatMul(flat, wo)""",
        projections()
        | APART
        | {"merged": ints(-1, 5, SIZE), "merged_t": ints(-1, SIZE, 5)}
        | {"unmerged": ints(-1, HEADS, 5, SIZE)},
        HEADS,
    ),
    "one head": (
        f"""{PROJECT} t = Transpose<perm = [0, 2, 1]>(kb) s = MatMul(qb, t) z = Mul(s, scale)
        p = Softmax(z) flat = MatMul(p, vb) y = MatMul(flat, wo)""",
        projections(),
        1,
    ),
    "bias by heads": (
        f"{PROJECT} {SPLIT.replace('qh =', 'qn =')} qh = Add(qn, u) {SCORES} {ATTEND}",
        projections() | APART | weights(u=(HEADS, 1, SIZE)),
        HEADS,
    ),
    "scaled operands and a masked sum": (
        f"""{PROJECT} {SPLIT} kt = Transpose<perm = [0, 2, 3, 1]>(kr) qs = Div(qh, root)
        ks = Mul(kt, root) s0 = MatMul(qs, ks) s = Add(s0, mask) {ATTEND}""",
        projections() | APART | weights(mask=(5, 5)) | {"root": np.array(1.4, np.float32)},
        HEADS,
    ),
}


@pytest.mark.parametrize("which", LAYOUTS)
def test_each_head_has_a_set_of_values_and_one_of_queries_and_keys(which: str) -> None:
    body, values, heads = LAYOUTS[which]
    alignment, *_ = align(chain(f"{TOKENS} {{ {body} }}", values))
    size = 12 // heads
    assert sizes(alignment) == [(size, False)] * heads + [(size, True)] * heads
    assert not alignment.left_alone


def test_key_value_heads_that_serve_several_queries() -> None:
    body = f"""{PROJECT} qr = Reshape(qb, to_heads) qh = Transpose<perm = [0, 2, 1, 3]>(qr)
        kr = Reshape(kb, to_served) kh = Transpose<perm = [0, 2, 1, 3]>(kr)
        vr = Reshape(vb, to_served) vs = Transpose<perm = [0, 2, 1, 3]>(vr)
        ku = Unsqueeze(kh, two) ke = Expand(ku, spread) ks = Reshape(ke, heads)
        vu = Unsqueeze(vs, two) ve = Expand(vu, spread) vh = Reshape(ve, heads)
        kt = Transpose<perm = [0, 1, 3, 2]>(ks) s = MatMul(qh, kt) {ATTEND}"""
    values = projections(16, 8) | {"to_heads": ints(0, 5, 4, SIZE), "together": ints(0, 5, 16)}
    values |= {"to_served": ints(0, 5, 2, SIZE), "two": ints(2)}
    values |= {"spread": ints(1, 2, 2, 5, SIZE), "heads": ints(0, 4, 5, SIZE)}
    alignment, *_ = align(chain(f"{TOKENS} {{ {body} }}", values))
    assert sizes(alignment) == [(SIZE, False)] * 2 + [(SIZE, True)] * 2


def rotary(size: int) -> tuple[str, Weights]:
    """Rotate the first `size` dims of each head of `qh` and `kh`."""
    lines, angles = "", np.arange(5)[:, None] * np.tile([1.0, 0.1], size // 2)[None]
    for one in "qk":
        lines += f"""{one}a = Slice({one}h, n0, n_half, last)
            {one}b1 = Slice({one}h, n_half, n_end, last)
            {one}n = Neg({one}b1) {one}w = Concat<axis = -1>({one}n, {one}a)
            {one}f = Slice({one}h, n0, n_end, last)
            {one}c = Mul({one}f, cos) {one}s = Mul({one}w, sin) {one}o = Add({one}c, {one}s) """
        if size < SIZE:
            lines += f"""{one}z = Slice({one}h, n_end, n_all, last)
                {one}t = Concat<axis = -1>({one}o, {one}z) """
        else:
            lines += f"{one}t = Identity({one}o) "
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    ends = {"n0": ints(0), "n_half": ints(size // 2), "n_end": ints(size), "n_all": ints(SIZE)}
    return lines, tables | ends | {"last": ints(-1)}


@pytest.mark.parametrize(("size", "aligned"), [(4, []), (2, [(2, True)] * HEADS)])
def test_rotary_dims_are_left_alone_and_the_others_are_not(
    size: int, aligned: list[tuple[int, bool]]
) -> None:
    lines, more = rotary(size)
    body = f"""{PROJECT} {SPLIT} kh = Transpose<perm = [0, 2, 1, 3]>(kr) {lines}
        kk = Transpose<perm = [0, 1, 3, 2]>(kt) s = MatMul(qt, kk) {ATTEND}"""
    alignment, *_ = align(chain(f"{TOKENS} {{ {body} }}", projections() | APART | more))
    assert sizes(alignment) == sorted(aligned + [(SIZE, False)] * HEADS)


def test_queries_that_are_their_own_keys_are_left_alone() -> None:
    body = f"""q = MatMul(x, wq) v = MatMul(x, wv) vb = Add(v, bv)
        qr = Reshape(q, to_heads) qh = Transpose<perm = [0, 2, 1, 3]>(qr)
        kt = Transpose<perm = [0, 2, 3, 1]>(qr) s = MatMul(qh, kt)
        vr = Reshape(vb, to_heads) vh = Transpose<perm = [0, 2, 1, 3]>(vr) {ATTEND}"""
    values = {k: v for k, v in projections().items() if k not in ("bq", "wk", "bk")}
    alignment, *_ = align(chain(f"{TOKENS} {{ {body} }}", values | APART))
    assert sizes(alignment) == [(SIZE, False)] * HEADS


def heads_of(alignment: Alignment, *, product: bool) -> list[Aligned]:
    (sets,) = alignment.sets.values()
    return [one for one in sets if one.product == product]


def attention() -> onnx.ModelProto:
    body, values, _ = LAYOUTS["heads"]
    return chain(f"{TOKENS} {{ {body} }}", values)


def test_dropping_components_of_a_head_costs_their_energies() -> None:
    alignment, aligned, subject, feeds = align(attention())
    wanted = fetch(subject.model, ["y", "s"], feeds)
    for one in heads_of(alignment, product=False):
        full = EditableModel(aligned.model.clone(), aligned.coupling)
        full.blank(subject.groups[0], one.units[2:])
        got = fetch(full.model, ["y"], feeds)
        apart = np.concatenate([w["y"] - g["y"] for w, g in zip(wanted, got, strict=True)])
        measured = apart.var(axis=(0, 1), dtype=np.float64).sum()
        assert measured == pytest.approx(one.energies[2:].sum(), rel=1e-3)
    for head, one in enumerate(heads_of(alignment, product=True)):
        full = EditableModel(aligned.model.clone(), aligned.coupling)
        full.blank(subject.groups[0], one.units[2:])
        got = fetch(full.model, ["s"], feeds)
        apart = np.concatenate([w["s"] - g["s"] for w, g in zip(wanted, got, strict=True)])
        seen = apart[:, head] - apart[:, head].mean(axis=-1, keepdims=True)
        # queries and keys are taken to be independent, in a few samples they are not quite
        assert np.square(seen).mean() < 1.5 * one.energies[2:].sum()


def test_the_cut_model_is_the_masked_one() -> None:
    alignment, aligned, subject, _ = align(attention())
    group, coupling = subject.groups[0], aligned.coupling
    sets = [*heads_of(alignment, product=False), *heads_of(alignment, product=True)]
    dead = [int(group.units[unit]) for one in sets for unit in one.units[-1:]]
    masked, sliced = aligned.model.clone(), aligned.model.clone()
    zero_removed(masked, Cut(coupling, dead))
    slice_removed(sliced, Cut(coupling, dead))
    smaller = ir.to_proto(sliced)
    onnx.checker.check_model(smaller, full_check=True)
    shapes = {tuple(one.dims) for one in smaller.graph.initializer}
    assert {(12, 9), (9, 7)} <= shapes
    inputs = feed(attention(), 3, seed=3)
    assert difference(outputs(ir.to_proto(masked), inputs), outputs(smaller, inputs)) < 1e-5


def test_a_trained_transformer_keeps_more_with_fewer_dims() -> None:
    proto = onnx.load(MODELS / "digits_transformer.onnx")
    rows = dict(np.load(MODELS / "digits_transformer_calibration.npz"))
    _, _, subject, _ = align(proto)
    full = EditableModel(subject.model.clone(), subject.coupling)
    alignment = align_components(full, subject.groups, [rows], CONTEXT)
    assert alignment.sets
    assert sizes(alignment) == [(8, False)] * 8 + [(8, True)] * 8
    assert difference(outputs(proto, rows), outputs(ir.to_proto(full.model), rows)) < 1e-5
    wanted = next(iter(outputs(proto, rows).values())).astype(np.float64)
    errors = []
    for target in (EditableModel(load(proto).model, subject.coupling), full):
        for group in subject.groups:
            for one in alignment.sets.get(group.name, ()):
                target.blank(group, one.units[3:])
        got = next(iter(outputs(ir.to_proto(target.model), rows).values()))
        errors.append(float(np.square(got - wanted).sum() / np.square(wanted).sum()))
    assert errors[1] < 0.2 * errors[0]
