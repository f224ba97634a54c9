"""Rotary position embedding: pairs of entries of a head, turned by an angle for each position.

    y1 = x1 cos - x2 sin        y2 = x2 cos + x1 sin

Source: Su et al. 2021; onnxruntime, ContribOperators.md.
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


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
"""Body of every operator, by domain and name."""
