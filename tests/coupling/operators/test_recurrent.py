"""LSTM, GRU and RNN: a hidden unit owns a row in every gate, a column of R, and its states."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.rules import Case, Shape, check, runnable

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ONE_WAY = "b[0] c[1] r[1] r[2] w[1]"
BOTH_WAYS = "b[0] c[0,1] r[0,1] r[0,2] w[0,1]"
SEQUENCE = {"x": "3, N, 4", "y": "3, N, 3"}
ONE = {"one": np.array([1])}
AXES = {"zero": np.array([0]), "one": np.array([1])}


def weights(op: str, directions: int = 1, inputs: int = 4, units: int = 6) -> dict[str, Shape]:
    rows = GATES[op] * units
    return {
        "w": (directions, rows, inputs),
        "r": (directions, rows, units),
        "c": (directions, 2 * rows),
        "b": (directions * units, 3),
    }


def one_way(op: str, node: str, *owned: str, opset: int = 17, **more: object) -> Case:
    """Six units, read from the sequence of outputs."""
    squeeze = "u = Squeeze(s, one)" if opset >= 13 else "u = Squeeze<axes=[1]>(s)"
    groups = (f"6: {' '.join(sorted((*ONE_WAY.split(), *owned)))}",)
    settings: dict[str, object] = {
        "weights": weights(op),
        "groups": groups,
        "values": ONE if opset >= 13 else {},
        "kind": "channel",
        **SEQUENCE,
        **more,
    }
    return Case(op, f"{node} {squeeze} y = MatMul(u, b)", opset=opset, **settings)  # type: ignore[arg-type]


def both_ways(op: str, attributes: str = "") -> Case:
    """Six units in either direction, side by side in the output."""
    return Case(
        op,
        f'd = {op}<hidden_size=6, direction="bidirectional"{attributes}>(x, w, r, c) '
        "t = Transpose<perm=[0, 2, 1, 3]>(d) u = Reshape(t, k) y = MatMul(u, b)",
        weights(op, directions=2),
        (f"12: {BOTH_WAYS}",),
        kind="channel group",
        values={"k": np.array([0, 0, -1])},
        **SEQUENCE,
    )


def last_state(op: str, outputs: str, *, read: str = "e") -> Case:
    """Read from the final hidden or cell state instead of the sequence."""
    node = f"{outputs} = {op}<hidden_size=6>(x, w, r, c) u = Squeeze({read}, zero)"
    return Case(
        op,
        f"{node} y = MatMul(u, b)",
        weights(op),
        (f"6: {ONE_WAY}",),
        kind="channel",
        x="3, N, 4",
        values={"zero": np.array([0])},
    )


def summed(op: str, activations: str, exact: bool) -> Case:
    """A sum over the units is exact only if a removed unit is zero."""
    node = f"s = {op}<hidden_size=6, activations=[{activations}]>(x, w, r, c)"
    return Case(
        op,
        f"{node} u = Squeeze(s, one) v = ReduceSum(u, two) t = Mul(u, v) y = MatMul(t, b)",
        weights(op),
        (f"6: {ONE_WAY}",) if exact else (),
        "" if exact else "ReduceSum takes statistics over it",
        values={"one": np.array([1]), "two": np.array([2])},
        **SEQUENCE,
    )


BATCH = (
    "size = Shape(x) n = Gather(size, one) "
    "units = Constant<value=int64[1]{6}>() shape = Concat<axis=0>(one, n, units)"
)
"""Shape [1, batch, 6] of an initial state, as exporters compute it."""

# PyTorch keeps the gates in the order i f g o; ONNX wants i o f c.
GATES_OF_PYTORCH = " ".join(
    f"{name}{i} = Slice(p{name}, at{i}, at{i + 1}, zero)" for name in "wrc" for i in range(4)
)
REORDERED = " ".join(
    f"{name}x = Concat<axis=0>({name}0, {name}3, {name}1, {name}2) "
    f"{name} = Unsqueeze({name}x, zero)"
    for name in ("w", "r")
)

CASES = [
    *(one_way(op, f"s = {op}<hidden_size=6>(x, w, r, c)") for op in GATES),
    *(
        one_way(op, f"s = {op}<hidden_size=6>(x, w, r, c)", opset=v)
        for op in GATES
        for v in (9, 22)
    ),
    *(
        one_way(op, f"s = {op}<hidden_size=6>(x, w, r)", groups=("6: b[0] r[1] r[2] w[1]",))
        for op in GATES
    ),
    *(both_ways(op) for op in GATES),
    one_way("LSTM", 's = LSTM<hidden_size=6, direction="reverse", clip=0.5>(x, w, r, c)'),
    one_way("LSTM", "s = LSTM<hidden_size=6, input_forget=1>(x, w, r, c)"),
    one_way("GRU", "s = GRU<hidden_size=6, linear_before_reset=1>(x, w, r, c)"),
    both_ways("GRU", ", linear_before_reset=1"),
    one_way("RNN", 's = RNN<hidden_size=6, activations=["Relu"]>(x, w, r, c)'),
    both_ways("RNN", ', activations=["Relu", "Sigmoid"]'),
    *(last_state(op, ", e") for op in GATES),
    last_state("LSTM", "s, e, f", read="f"),
    Case(
        "LSTM",  # all three outputs at once
        "s, e, f = LSTM<hidden_size=6>(x, w, r, c) u = Squeeze(s, one) g = Mul(e, f) "
        "h = Squeeze(g, zero) t = Mul(u, h) y = MatMul(t, b)",
        weights("LSTM"),
        (f"6: {ONE_WAY}",),
        values=AXES,
        **SEQUENCE,
    ),
    Case(
        "LSTM",  # the forward direction alone is read, and still both can lose units
        'd = LSTM<hidden_size=6, direction="bidirectional">(x, w, r, c) '
        "u = Gather<axis=1>(d, i) y = MatMul(u, b)",
        weights("LSTM", 2) | {"b": (6, 3)},
        (f"12: {BOTH_WAYS}",),
        values={"i": np.array(0)},
        **SEQUENCE,
    ),
    Case(
        "GRU",  # weights of its own for each direction
        "w = Concat<axis=0>(w0, w1) r = Concat<axis=0>(r0, r1) "
        'd = GRU<hidden_size=6, direction="bidirectional">(x, w, r) '
        "t = Transpose<perm=[0, 2, 1, 3]>(d) u = Reshape(t, k) y = MatMul(u, b)",
        {"w0": (1, 18, 4), "w1": (1, 18, 4), "r0": (1, 18, 6), "r1": (1, 18, 6), "b": (12, 3)},
        ("18: b[0] r0[1] r0[2] r1[1] r1[2] w0[1] w1[1]",),
        refused="it meets an axis of w that cannot be cut",
        kind="channel group",
        values={"k": np.array([0, 0, -1])},
        **SEQUENCE,
    ),
    Case(
        "LSTM",  # two layers, the second on both directions of the first
        'd = LSTM<hidden_size=6, direction="bidirectional">(x, w, r, c) '
        "t = Transpose<perm=[0, 2, 1, 3]>(d) u = Reshape(t, k) "
        "e = LSTM<hidden_size=5>(u, w2, r2) v = Squeeze(e, one) y = MatMul(v, b)",
        weights("LSTM", 2) | {"w2": (1, 20, 12), "r2": (1, 20, 5), "b": (5, 3)},
        ("12: c[0,1] r[0,1] r[0,2] w2[2] w[0,1]", "5: b[0] r2[1] r2[2] w2[1]"),
        values={"k": np.array([0, 0, -1]), "one": np.array([1])},
        **SEQUENCE,
    ),
    *(
        Case(
            op,  # steps cut from one vector: what goes, goes at every step
            f"h = MatMul(m, a) v = Reshape(h, k) t = Transpose<perm=[1, 0, 2]>(v) "
            f"s = {op}<hidden_size=6>(t, w, r, c) u = Squeeze(s, one) y = MatMul(u, b)",
            weights(op) | {"a": (4, 12)},
            ("4: a[1] w[2]", f"6: {ONE_WAY}"),
            values={"k": np.array([0, 3, 4]), "one": np.array([1])},
            x="3, N, 4",
            y="3, N, 3",
            inputs=", float[N, 4] m",
        )
        for op in GATES
    ),
    one_way(
        "LSTM",
        "s = LSTM<hidden_size=6>(x, w, r, c, , h, k)",
        "h[2]",
        "k[2]",
        weights=weights("LSTM") | {"h": (1, 2, 6), "k": (1, 2, 6)},
        x="3, 2, 4",
        y="3, 2, 3",
    ),
    Case(
        "GRU",
        'd = GRU<hidden_size=6, direction="bidirectional">(x, w, r, c, , h) '
        "t = Transpose<perm=[0, 2, 1, 3]>(d) u = Reshape(t, k) y = MatMul(u, b)",
        weights("GRU", 2) | {"h": (2, 2, 6)},
        (f"12: {' '.join(sorted((*BOTH_WAYS.split(), 'h[0,2]')))}",),
        values={"k": np.array([0, 0, -1])},
        x="3, 2, 4",
        y="3, 2, 3",
    ),
    *(
        one_way(op, f"{BATCH} h = ConstantOfShape(shape) s = {op}<hidden_size=6>(x, w, r, c, , h)")
        for op in GATES
    ),
    one_way(
        "RNN",
        f"{BATCH} h = Expand(o, shape) s = RNN<hidden_size=6>(x, w, r, c, , h)",
        "o[2]",
        weights=weights("RNN") | {"o": (1, 1, 6)},
    ),
    *(
        one_way(
            op,
            f"s = {op}<hidden_size=6>(x, w, r, c, , h)",
            groups=(),
            refused="it meets an axis of h that cannot be cut",
            inputs=", float[1, N, 6] h",
            kind="",
        )
        for op in GATES
    ),
    one_way(
        "LSTM",
        "s = LSTM<hidden_size=6>(x, w, r, c, n)",
        values=ONE | {"n": np.array([3, 2], np.int32)},
        x="3, 2, 4",
        y="3, 2, 3",
    ),
    one_way(
        "LSTM",
        "s = LSTM<hidden_size=6>(x, w, r, c, , , , p)",
        weights=weights("LSTM") | {"p": (1, 18)},
        groups=(),
        refused="an LSTM with peepholes",
        kind="",
    ),
    one_way(
        "LSTM",  # as PyTorch's exporter writes it without folding constants
        f"{GATES_OF_PYTORCH} {REORDERED} cx = Concat<axis=0>(c0, c3, c1, c2, f) "
        "c = Unsqueeze(cx, zero) s = LSTM<hidden_size=6>(x, w, r, c)",
        weights={"pw": (24, 4), "pr": (24, 6), "pc": (24,), "f": (24,), "b": (6, 3)},
        groups=("6: b[0] f[0] pc[0] pr[0] pr[1] pw[0]",),
        refused="it meets an axis of w that cannot be cut",
        values=AXES | {f"at{i}": np.array([6 * i]) for i in range(5)},
    ),
    summed("LSTM", '"Sigmoid", "Tanh", "Tanh"', exact=True),
    summed("LSTM", '"Sigmoid", "Softsign", "Relu"', exact=True),
    summed("LSTM", '"Sigmoid", "Tanh", "Sigmoid"', exact=False),
    summed("LSTM", '"Sigmoid", "Sigmoid", "Tanh"', exact=False),
    summed("GRU", '"HardSigmoid", "Tanh"', exact=True),
    summed("GRU", '"Sigmoid", "Softplus"', exact=False),
    summed("RNN", '"Relu"', exact=True),
    summed("RNN", '"HardSigmoid"', exact=False),
]


@pytest.mark.parametrize("case", runnable(CASES), ids=str)
def test_rule(case: Case) -> None:
    check(case)


def test_what_enters_a_recurrent_layer_is_read_by_its_input_weight() -> None:
    case = next(case for case in CASES if "w2" in case.weights)
    first = next(group for group in case.traced().groups if group.size == 12)
    readers = {(one.consumer.weight, one.consumer.weight_axis) for one in first.readings}
    assert readers == {("w2", 2)}
