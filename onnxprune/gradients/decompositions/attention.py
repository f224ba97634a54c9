"""Attention and rotary position embedding of onnxruntime.

Attention is softmax(scale Q K' + masks) V for every head. Runs that continue from earlier keys and
values are left out: calibration samples are whole sequences. Rotary embedding turns pairs of
entries of a head by an angle for each position:

    y1 = x1 cos - x2 sin        y2 = x2 cos + x1 sin

Source: onnxruntime, ContribOperators.md; Su et al. 2021 for rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.gradients.decompositions.fused import Decomposition, Fused, body


def turned(name: str, half: int) -> str:
    """Text that makes `{name}t` of `{name}` [batch, sequence, heads, entries].

    Args:
        name: of the tensor; names with it as a prefix are taken.
        half: half the number of entries that are turned; the others stay.
    """
    ends = (0, half, 2 * half, 2**31)
    text = "".join(
        f"{name}e{place} = Constant<value = int64[1] {{{end}}}>() "
        for place, end in enumerate(ends)
    )
    text += f"{name}along = Constant<value = int64[1] {{3}}>() "
    for place, part in enumerate(("a", "b", "rest")):
        text += f"{name}{part} = Slice({name}, {name}e{place}, {name}e{place + 1}, {name}along) "
    return (
        text
        + f"""{name}ac = Mul({name}a, cos) {name}bs = Mul({name}b, sin)
        {name}bc = Mul({name}b, cos) {name}as = Mul({name}a, sin)
        {name}u = Sub({name}ac, {name}bs) {name}v = Add({name}bc, {name}as)
        {name}t = Concat<axis = 3>({name}u, {name}v, {name}rest) """
    )


def _rotary(node: Fused) -> Decomposition:
    """RotaryEmbedding: positions are given for each entry, or where the first one is."""
    node.require(not node.attribute("interleaved", 0), "interleaved = 0")
    node.require(not node.attribute("is_packed_batching", 0), "is_packed_batching = 0")
    shape, half = node.shape(0), node.shape(2)[1]
    if len(shape) == 4:
        into = "h = Transpose<perm = [0, 2, 1, 3]>(x) "
        back = "y = Transpose<perm = [0, 2, 1, 3]>(ht) "
    else:
        heads = int(node.attribute("num_heads", 0)) or shape[2] // (2 * half)
        into = f"split = Constant<value = int64[4] {{0, 0, {heads}, -1}}>() h = Reshape(x, split) "
        back = "same = Shape(x) y = Reshape(ht, same) "
    if len(node.shape(1)) == 2:
        places = "at = Identity(places) "
        table = "0, 0, 1, -1"
    else:
        places = """hs = Shape(h) one = Constant<value = int64 {1}>()
            none = Constant<value = int64 {0}>() n = Gather(hs, one) r = Range(none, n, one)
            at = Add(r, places) """
        table = f"1, -1, 1, {half}"
    text = f"{into}{places} table = Constant<value = int64[4] {{{table}}}>() "
    for name in ("cos", "sin"):
        text += f"{name}g = Gather({name}s, at) {name} = Reshape({name}g, table) "
    return body("x, places, coss, sins", "y", text + turned("h", half) + back)


_LOWEST = -3.4028234663852886e38


def _attention(node: Fused) -> Decomposition:
    """Attention: one product gives queries, keys and values."""
    node.require(not node.has(4) and not node.has(6), "no earlier keys and values")
    node.require(not node.gives(1), "keys and values that nothing reads")
    node.require(not node.attribute("do_rotary", 0), "do_rotary = 0")
    whole = node.shape(1)[1]
    widths = tuple(node.attribute("qkv_hidden_sizes") or (whole // 3,) * 3)
    added = "s = Add(p, b)" if node.has(2) else "s = Identity(p)"
    ends = [0, widths[0], sum(widths[:2]), sum(widths)]
    text = f"p = MatMul(x, w) {added} along = Constant<value = int64[1] {{2}}>() "
    for place, name in enumerate("qkv"):
        text += (
            f"{name}0 = Constant<value = int64[1] {{{ends[place]}}}>() "
            f"{name}1 = Constant<value = int64[1] {{{ends[place + 1]}}}>() "
            f"{name} = Slice(s, {name}0, {name}1, along) "
        )
    heads = int(node.attribute("num_heads"))
    text += _heads(node, heads, widths[0] // heads, mask=3, bias=5)
    return body("x, w, b, mask, past, bias", "y", text)


def _multi_head(node: Fused) -> Decomposition:
    """MultiHeadAttention: queries, keys and values are separate inputs."""
    ranks = [len(node.shape(slot)) if node.has(slot) else 0 for slot in range(3)]
    node.require(ranks == [3, 3, 3], "queries, keys and values as three inputs of three axes")
    node.require(not any(map(node.has, range(6, 10))), "no earlier keys and values")
    node.require(not any(map(node.gives, (1, 2, 3))), "keys and values that nothing reads")
    widths = [node.shape(slot)[2] for slot in range(3)]
    heads = int(node.attribute("num_heads"))
    if node.has(3):
        ends = [0, widths[0], sum(widths[:2]), sum(widths)]
        text = "along = Constant<value = int64[1] {0}>() "
        for place, name in enumerate("qkv"):
            text += (
                f"{name}0 = Constant<value = int64[1] {{{ends[place]}}}>() "
                f"{name}1 = Constant<value = int64[1] {{{ends[place + 1]}}}>() "
                f"{name}b = Slice(b, {name}0, {name}1, along) "
                f"{name} = Add({name}x, {name}b) "
            )
    else:
        text = " ".join(f"{name} = Identity({name}x)" for name in "qkv") + " "
    text += _heads(node, heads, widths[0] // heads, mask=4, bias=5)
    return body("qx, kx, vx, b, mask, bias", "y", text)


def _grouped(node: Fused) -> Decomposition:
    """GroupQueryAttention: several heads of queries share one of keys and values."""
    node.require(node.has(1) and node.has(2), "queries, keys and values as three inputs")
    node.require(not node.has(3) or node.shape(3)[2] == 0, "no earlier keys and values")
    node.require(not node.has(9) and not node.has(10), "positions that count from 0")
    node.require(int(node.attribute("local_window_size", -1)) == -1, "no window")
    node.require(not node.attribute("softcap", 0.0), "softcap = 0")
    node.require(not node.attribute("rotary_interleaved", 0), "rotary_interleaved = 0")
    heads, shared = int(node.attribute("num_heads")), int(node.attribute("kv_num_heads"))
    width = node.shape(0)[2] // heads
    text = ""
    for name, count in (("q", heads), ("k", shared), ("v", shared)):
        text += (
            f"{name}n = Constant<value = int64[4] {{0, 0, {count}, -1}}>() "
            f"{name} = Reshape({name}x, {name}n) "
        )
    if node.attribute("do_rotary", 0):
        half = node.shape(7)[1]
        text += f"""qs = Shape(q) z1 = Constant<value = int64[1] {{1}}>()
            z0 = Constant<value = int64[1] {{0}}>() steps = Gather(qs, z1)
            table = Constant<value = int64[4] {{1, -1, 1, {half}}}>() """
        for name in ("cos", "sin"):
            text += f"{name}g = Slice({name}s, z0, steps, z0) {name} = Reshape({name}g, table) "
        text += turned("q", half) + turned("k", half)
    else:
        text += "qt = Identity(q) kt = Identity(k) "
    # [batch, shared, heads / shared, queries, width] against [batch, shared, 1, width, keys]
    scale = float(node.attribute("scale", 0.0)) or width**-0.5
    text += f"""qh = Transpose<perm = [0, 2, 1, 3]>(qt) pk = Transpose<perm = [0, 2, 1, 3]>(kt)
        pv = Transpose<perm = [0, 2, 1, 3]>(v) ku = Transpose<perm = [0, 2, 3, 1]>(kt)
        size = Shape(qx) count = Constant<value = int64[1] {{{shared}}}>()
        each = Constant<value = int64[1] {{{heads // shared}}}>()
        entries = Constant<value = int64[1] {{{width}}}>()
        one = Constant<value = int64[1] {{1}}>() any = Constant<value = int64[1] {{-1}}>()
        first = Constant<value = int64[1] {{0}}>() second = Constant<value = int64[1] {{1}}>()
        samples = Gather(size, first) queries = Gather(size, second)
        qshape = Concat<axis = 0>(samples, count, each, queries, entries)
        kshape = Concat<axis = 0>(samples, count, one, entries, any)
        vshape = Concat<axis = 0>(samples, count, one, any, entries)
        qg = Reshape(qh, qshape) kg = Reshape(ku, kshape) vg = Reshape(pv, vshape)
        raw = MatMul(qg, kg) f = Constant<value = float {{{scale}}}>() e = Mul(raw, f)
        hcount = Constant<value = int64[1] {{{heads}}}>()
        all = Concat<axis = 0>(samples, hcount, queries, any) c = Reshape(e, all)
        {_causal()} s = Add(c, t2) a = Softmax<axis = -1>(s)
        apart = Concat<axis = 0>(samples, count, each, queries, any) ag = Reshape(a, apart)
        o = MatMul(ag, vg) joined = Concat<axis = 0>(samples, hcount, queries, entries)
        oh = Reshape(o, joined) ot = Transpose<perm = [0, 2, 1, 3]>(oh)
        flat = Constant<value = int64[3] {{0, 0, -1}}>() y = Reshape(ot, flat)"""
    return body("qx, kx, vx, past, pastv, lengths, total, coss, sins", "y, pk, pv", text)


def _heads(node: Fused, heads: int, width: int, mask: int, bias: int) -> str:
    """From q, k and v of three axes to y."""
    scale = float(node.attribute("scale", 0.0)) or width**-0.5
    text = f"split = Constant<value = int64[4] {{0, 0, {heads}, -1}}>() "
    text += "join = Constant<value = int64[3] {0, 0, -1}>() "
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        text += f"{name}r = Reshape({name}, split) {name}h = Transpose<perm = {order}>({name}r) "
    text += f"c = MatMul(qh, kh) f = Constant<value = float {{{scale}}}>() e0 = Mul(c, f) "
    terms = [
        _padding(node, mask) if node.has(mask) else "",
        "t1 = Identity(bias) " if node.has(bias) else "",
        _causal() if node.attribute("unidirectional", 0) else "",
    ]
    last = "e0"
    for number, term in enumerate(terms):
        if term:
            text += f"{term} e{number + 1} = Add({last}, t{number}) "
            last = f"e{number + 1}"
    return text + (
        f"a = Softmax<axis = -1>({last}) o = MatMul(a, vh) "
        "ot = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(ot, join)"
    )


def _padding(node: Fused, slot: int) -> str:
    """What is added to the scores where a mask is 0: int32 [batch, keys], or lengths [batch]."""
    shape = node.shape(slot)
    low = float(node.attribute("mask_filter_value", -10000.0))
    node.require(len(shape) in (1, 2), "a mask of lengths or [batch, keys]")
    if len(shape) == 1:
        node.require(shape[0] == node.shape(0)[0], "a mask with one length for each sample")
        made = """ks = Shape(k) n = Gather<axis = 0>(ks, kat) ones = Range(m0, n, m1)
            lens = Reshape(mask, column) i32 = Cast<to = 7>(lens) kept = Less(ones, i32)
            m = Cast<to = 1>(kept)"""
    else:
        made = "m = Cast<to = 1>(mask)"
    return f"""kat = Constant<value = int64 {{1}}>() m0 = Constant<value = int64 {{0}}>()
        m1 = Constant<value = int64 {{1}}>() column = Constant<value = int64[2] {{-1, 1}}>()
        {made} wide = Constant<value = int64[4] {{0, 1, 1, -1}}>()
        one = Constant<value = float {{1.0}}>() low = Constant<value = float {{{low}}}>()
        gone = Sub(one, m) mm = Mul(gone, low) t0 = Reshape(mm, wide) """


def _causal() -> str:
    """What hides later keys from a query."""
    return f"""sh = Shape(c) at2 = Constant<value = int64 {{2}}>()
        at3 = Constant<value = int64 {{3}}>() z0 = Constant<value = int64 {{0}}>()
        z1 = Constant<value = int64 {{1}}>() upright = Constant<value = int64[2] {{-1, 1}}>()
        rows = Gather<axis = 0>(sh, at2) columns = Gather<axis = 0>(sh, at3)
        before = Sub(columns, rows) own = Range(before, columns, z1) own2 = Reshape(own, upright)
        keys = Range(z0, columns, z1) later = Greater(keys, own2)
        hidden = Constant<value = float {{{_LOWEST}}}>() shown = Constant<value = float {{0.0}}>()
        t2 = Where(later, hidden, shown) """


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "GroupQueryAttention"): _grouped,
}
"""Body of every operator, by domain and name."""
