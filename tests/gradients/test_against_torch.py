"""Whole networks: gradients of all weights are those of torch.autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.differences import emitted_gradients
from helpers.oracle import parse
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
functional = torch.nn.functional

Weights = dict[str, NDArray[np.float32]]
RNG = np.random.default_rng(0)


def weight(*shape: int) -> NDArray[np.float32]:
    """Of a spread that keeps activations at about their size."""
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (RNG.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def check(
    text: str, weights: Weights, x: NDArray[Any], network: Callable[..., Any], **constants: Any
) -> None:
    """Compare the gradients of sum(seed * y).

    Args:
        text: nodes that make y of x.
        weights: all are compared.
        x: input.
        network: the same in torch, of x and the weights by name.
        constants: other initializers.
    """
    axes = ", ".join(["N", *map(str, x.shape[1:])])
    kind = "int64" if x.dtype.kind == "i" else "float"
    proto = parse(
        f"""<ir_version: 8, opset_import: ["": 18]>
        g ({kind}[{axes}] x) => (float[] y) {{ {text} }}""",
        {**weights, **constants},
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    given = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    y = network(torch.tensor(x), **given)
    seed = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(seed))
    found = emitted_gradients(proto, {"x": x}, seed, weights=weights)
    for name, tensor in given.items():
        wanted = tensor.grad.numpy()
        apart = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
        assert apart < 1e-4, f"{name}: {apart:.1e}"


def test_a_residual_network_with_group_and_batch_normalisation() -> None:
    weights = {
        "stem": weight(8, 3, 3, 3),
        "mean_scale": 1 + weight(8),
        "mean_shift": weight(8),
        "wide": weight(16, 8, 1, 1),
        "scale": 1 + weight(16),
        "shift": weight(16),
        "each": weight(16, 1, 3, 3),
        "slope": np.abs(weight(16, 1, 1)),
        "narrow": weight(8, 16, 1, 1),
        "bias": weight(8),
        "down": weight(12, 8, 3, 3),
        "beside": weight(12, 8, 1, 1),
        "up": weight(12, 6, 2, 2),
        "head": weight(5, 6),
        "head_bias": weight(5),
    }
    statistics = {"m": weight(8), "v": np.abs(weight(8)) + 0.5}
    text = """a = Conv<pads = [1, 1, 1, 1]>(x, stem)
        b = BatchNormalization(a, mean_scale, mean_shift, m, v) c = Relu(b)
        d = Conv(c, wide) grouped = Reshape(d, groups) ones = Expand(unit, four)
        zeros = Sub(ones, ones) normal = InstanceNormalization(grouped, ones, zeros)
        like = Shape(d) e = Reshape(normal, like) column = Unsqueeze(scale, places)
        f = Mul(e, column) below = Unsqueeze(shift, places) g = Add(f, below)
        h = Conv<group = 16, pads = [1, 1, 1, 1]>(g, each) i = PRelu(h, slope)
        j = Conv(i, narrow, bias) k = Add(j, c)
        l = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(k, down)
        n = Conv<strides = [2, 2]>(k, beside) o = Add(l, n) p = Sigmoid(o) q = Mul(o, p)
        r = ConvTranspose<strides = [2, 2]>(q, up) s = GlobalAveragePool(r) t = Flatten(s)
        y = Gemm<transB = 1>(t, head, head_bias)"""
    constants = {
        "groups": np.array([0, 4, -1]),
        "unit": np.ones(1, np.float32),
        "four": np.array([4]),
        "places": np.array([1, 2]),
        **statistics,
    }

    def network(x: Any, **w: Any) -> Any:
        a = functional.conv2d(x, w["stem"], padding=1)
        m, v = (torch.tensor(array) for array in statistics.values())
        c = functional.batch_norm(a, m, v, w["mean_scale"], w["mean_shift"]).relu()
        d = functional.conv2d(c, w["wide"])
        e = functional.group_norm(d, 4, w["scale"], w["shift"])
        h = functional.conv2d(e, w["each"], padding=1, groups=16)
        i = functional.prelu(h, w["slope"].flatten())
        k = functional.conv2d(i, w["narrow"], w["bias"]) + c
        down = functional.conv2d(k, w["down"], stride=2, padding=1)
        q = functional.silu(down + functional.conv2d(k, w["beside"], stride=2))
        r = functional.conv_transpose2d(q, w["up"], stride=2)
        return functional.linear(r.mean((2, 3)), w["head"], w["head_bias"])

    x = RNG.standard_normal((4, 3, 16, 16)).astype(np.float32)
    check(text, weights, x, network, **constants)


HEADS, WIDTH = 2, 16


def test_a_transformer_block_behind_a_table_of_embeddings() -> None:
    """The table is read once more behind the block, for the scores of tokens."""
    weights = {
        "table": weight(11, WIDTH) * 4,
        "places": weight(6, WIDTH),
        "before_scale": 1 + weight(WIDTH),
        "before_shift": weight(WIDTH),
        "qkv": weight(3 * WIDTH, WIDTH) * 2,
        "qkv_bias": weight(3 * WIDTH),
        "out": weight(WIDTH, WIDTH),
        "out_bias": weight(WIDTH),
        "after_scale": 1 + weight(WIDTH),
        "after_shift": weight(WIDTH),
        "first": weight(4 * WIDTH, WIDTH),
        "first_bias": weight(4 * WIDTH),
        "second": weight(WIDTH, 4 * WIDTH),
        "second_bias": weight(WIDTH),
    }
    text = """t = Gather(table, x) h = Add(t, places)
        n = LayerNormalization(h, before_scale, before_shift)
        qkvt = Transpose(qkv) p = MatMul(n, qkvt) s = Add(p, qkv_bias)
        q, k, v = Split<axis = 2, num_outputs = 3>(s)
        qr = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(qr)
        kr = Reshape(k, split) kh = Transpose<perm = [0, 2, 3, 1]>(kr)
        vr = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(vr)
        c = MatMul(qh, kh) d = Div(c, root) a = Softmax(d) o = MatMul(a, vh)
        ot = Transpose<perm = [0, 2, 1, 3]>(o) oj = Reshape(ot, join)
        wt = Transpose(out) oo = MatMul(oj, wt) ob = Add(oo, out_bias) r = Add(h, ob)
        m = LayerNormalization(r, after_scale, after_shift)
        ft = Transpose(first) f = MatMul(m, ft) fb = Add(f, first_bias)
        e = Div(fb, two) ee = Erf(e) e1 = Add(ee, unit) e2 = Mul(fb, e1) g = Mul(e2, half)
        st = Transpose(second) u = MatMul(g, st) ub = Add(u, second_bias) w = Add(r, ub)
        tt = Transpose(table) y = MatMul(w, tt)"""
    numbers = {"root": np.sqrt(WIDTH / HEADS), "two": np.sqrt(2.0), "unit": 1.0, "half": 0.5}
    constants = {name: np.array(number, np.float32) for name, number in numbers.items()}
    shapes = {"split": np.array([0, 0, HEADS, -1]), "join": np.array([0, 0, -1])}

    def network(x: Any, **w: Any) -> Any:
        h = functional.embedding(x, w["table"]) + w["places"]
        n = functional.layer_norm(h, (WIDTH,), w["before_scale"], w["before_shift"])
        parts = functional.linear(n, w["qkv"], w["qkv_bias"]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        o = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        r = h + functional.linear(o, w["out"], w["out_bias"])
        m = functional.layer_norm(r, (WIDTH,), w["after_scale"], w["after_shift"])
        f = functional.gelu(functional.linear(m, w["first"], w["first_bias"]))
        return (r + functional.linear(f, w["second"], w["second_bias"])) @ w["table"].T

    x = RNG.integers(0, 11, (3, 6))
    check(text, weights, x, network, **constants, **shapes)


READ, HIDDEN, STEPS = 5, 4, 7
ORDERS = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2]}
"""Where the gates of torch are in ONNX: i f g o in i o f c, r z n in z r h."""


def in_order_of_torch(tensor: Any, op: str) -> Any:
    parts = tensor.split(HIDDEN)
    return torch.cat([parts[place] for place in ORDERS[op]])


@pytest.mark.parametrize("op", ORDERS)
def test_a_recurrent_network_in_both_directions(op: str) -> None:
    gates = len(ORDERS[op]) * HIDDEN
    weights = {
        "read": weight(READ, 3),
        "w": weight(2, gates, READ),
        "r": weight(2, gates, HIDDEN),
        "b": weight(2, 2 * gates),
        "head": weight(2 * HIDDEN, 3),
        "bias": weight(3),
    }
    more = ", linear_before_reset = 1" if op == "GRU" else ""
    text = f"""e = Einsum<equation = "btc,rc->tbr">(x, read) t = Tanh(e)
        s = {op}<hidden_size = {HIDDEN}, direction = "bidirectional"{more}>(t, w, r, b)
        u = Transpose<perm = [2, 0, 1, 3]>(s) f = Reshape(u, join) h = MatMul(f, head)
        y = Add(h, bias)"""

    def network(x: Any, **w: Any) -> Any:
        flat = []
        for way in range(2):
            parts = (w["w"][way], w["r"][way], *w["b"][way].split(gates))
            flat += [in_order_of_torch(part, op) for part in parts]
        t = torch.einsum("btc,rc->tbr", x, w["read"]).tanh()
        first = torch.zeros(2, x.shape[0], HIDDEN)
        states = (first, first) if op == "LSTM" else first
        run = {"LSTM": torch.lstm, "GRU": torch.gru}[op]
        s = run(t, states, flat, True, 1, 0.0, False, True, False)[0]
        return s.transpose(0, 1) @ w["head"] + w["bias"]

    x = RNG.standard_normal((3, STEPS, 3)).astype(np.float32)
    check(text, weights, x, network, join=np.array([0, 0, -1]))
