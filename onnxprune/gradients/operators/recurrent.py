"""Recurrent layers: the gradient goes back through time, one Scan for each direction.

Only what is carried from step to step needs a Scan. States h_t are outputs of the layer, so that
the gates of all steps are computed at once, as are dL/dx = dL/da W and dL/dW = dL/da' x of what the
gates are made of, a.
Source of the formulas: the ONNX operator specification, differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx.parser
import onnx_ir as ir

from onnxprune.gradients.step import GradientStep, NoGradient, Rule

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_HIDDEN_STATE = 5

_CELL = """(float[b, h] c, float[b, h] add, float[b, h] f) =>
    (float[b, h] next, float[b, h] now, float[b, h] before)
    { kept = Mul(f, c) next = Add(kept, add) now = Identity(next) before = Identity(c) }"""

_LSTM = """(float[b, h] dh, float[b, h] dc, float[g, h] r, float[b, h] dy, float[b, h] i,
    float[b, h] o, float[b, h] f, float[b, h] n, float[b, h] c, float[b, h] c0) =>
    (float[b, h] dh0, float[b, h] dc0, float[g, h] r0, float[b, g] da)
    { one = Constant<value = float {1.0}>() d = Add(dh, dy) t = Tanh(c)
      si = Sub(one, i) so = Sub(one, o) sf = Sub(one, f) n2 = Mul(n, n) sn = Sub(one, n2)
      t2 = Mul(t, t) st = Sub(one, t2) ti = Mul(i, si) to = Mul(o, so) tf = Mul(f, sf)
      dt = Mul(d, t) do = Mul(dt, to) dd = Mul(d, o) de = Mul(dd, st) e = Add(dc, de)
      en = Mul(e, n) di = Mul(en, ti) ec = Mul(e, c0) df = Mul(ec, tf) ei = Mul(e, i)
      dn = Mul(ei, sn) da = Concat<axis = -1>(di, do, df, dn) dh0 = MatMul(da, r)
      dc0 = Mul(e, f) r0 = Identity(r) }"""

_GRU = """(float[b, h] dh, float[k, h] rg, float[h, h] rn, float[b, h] dy, float[b, h] z,
    float[b, h] r, float[b, h] n, float[b, h] h0, float[b, h] q) =>
    (float[b, h] dh0, float[k, h] rg0, float[h, h] rn0, float[b, g] da)
    { one = Constant<value = float {1.0}>() d = Add(dh, dy) sz = Sub(one, z) sr = Sub(one, r)
      n2 = Mul(n, n) sn = Sub(one, n2) dz1 = Mul(d, sz) dn = Mul(dz1, sn) hn = Sub(h0, n)
      dhn = Mul(d, hn) tz = Mul(z, sz) dz = Mul(dhn, tz) tr = Mul(r, sr) RESET
      dg = Concat<axis = -1>(dz, dr) back = MatMul(dg, rg) kept = Mul(d, z)
      part = Add(kept, back) dh0 = Add(part, through) da = Concat<axis = -1>(dz, dr, dn)
      rg0 = Identity(rg) rn0 = Identity(rn) }"""
# the reset gate multiplies what the recurrent product gives, or the state that goes into it
_RESET_AFTER = "dq = Mul(dn, q) dr = Mul(dq, tr) u = Mul(dn, r) through = MatMul(u, rn)"
_RESET_BEFORE = (
    "u = MatMul(dn, rn) uh = Mul(u, h0) dr = Mul(uh, tr) through = Mul(u, r) qq = Identity(q)"
)

_RNN = """(float[b, h] dh, float[h, h] r, float[b, h] dy, float[b, h] y) =>
    (float[b, h] dh0, float[h, h] r0, float[b, h] da)
    { one = Constant<value = float {1.0}>() d = Add(dh, dy) y2 = Mul(y, y) s = Sub(one, y2)
      da = Mul(d, s) dh0 = MatMul(da, r) r0 = Identity(r) }"""


@dataclass(frozen=True)
class _Direction:
    """One direction of a layer, with helpers to write its gradient.

    Attributes:
        step: the node.
        number: of the direction.
        backwards: whether it goes from the last step to the first.
    """

    step: GradientStep
    number: int
    backwards: bool

    @property
    def width(self) -> int:
        """Number of hidden units."""
        return self.step.emit.shape_seen(self.step.input(2))[2]

    def own(self, value: ir.Value, axis: int = 0) -> ir.Value:
        """What belongs to this direction, without the axis of directions."""
        place = self.step.emit.constant(np.array(self.number, np.int64))
        return self.step.emit.op("Gather", value, place, axis=axis)

    def state(self, value: ir.Value | None) -> ir.Value:
        """A state, or its gradient, [batch, hidden]; zero where there is none."""
        emit, x = self.step.emit, self.step.input()
        if value is not None:
            return self.own(value)
        shape = emit.joined(emit.extents(x, 1, 2), emit.integers(self.width))
        return emit.op("Expand", emit.number(0.0, x), shape)

    def initial(self, slot: int) -> ir.Value:
        """A state before the first step."""
        return self.state(self.step.input(slot) if self.step.has(slot) else None)

    def states(self) -> ir.Value:
        """States behind every step, [steps, batch, hidden]."""
        return self.own(self.step.output, axis=1)

    def before(self) -> ir.Value:
        """States before every step, [steps, batch, hidden]."""
        emit = self.step.emit
        first = emit.unsqueeze(self.initial(_HIDDEN_STATE), [0])
        steps, start = emit.extents(self.step.input(), 0, 1), emit.integers(0)
        if self.backwards:
            whole, start = emit.op("Concat", self.states(), first, axis=0), emit.integers(1)
            steps = emit.op("Add", steps, start)
        else:
            whole = emit.op("Concat", first, self.states(), axis=0)
        return emit.op("Slice", whole, start, steps, emit.integers(0))

    def product(self, value: ir.Value, slot: int, start: int, stop: int) -> ir.Value:
        """A value times some gates of the weights at a slot, and the share of their bias."""
        emit = self.step.emit
        weight = self.gates(self.own(self.step.input(slot)), start, stop, axis=0)
        product = emit.op("MatMul", value, emit.op("Transpose", weight, perm=[1, 0]))
        if not self.step.has(3):
            return product
        shift = emit.shape_seen(self.step.input(2))[1] // self.width * (slot - 1)
        bias = self.own(self.step.input(3))
        return emit.op("Add", product, self.gates(bias, shift + start, shift + stop, axis=0))

    def gates(self, value: ir.Value, start: int, stop: int, axis: int = 2) -> ir.Value:
        """Some gates along an axis."""
        emit, width = self.step.emit, self.width
        ends = (emit.integers(start * width), emit.integers(stop * width))
        return emit.op("Slice", value, *ends, emit.integers(axis))

    def scan(
        self, text: str, states: Sequence[ir.Value], read: Sequence[ir.Value], turned: bool
    ) -> list[ir.Value]:
        """Append a Scan; last states and what every step gave, [steps, ...]."""
        body = ir.serde.deserialize_graph(onnx.parser.parse_graph(f"step {text}"))
        for value in (*body.inputs, *(made for node in body for made in node.outputs)):
            value.name = f"onnxprune/step/{value.name}"
        count = len(body.outputs) - len(states)
        way = int(self.backwards != turned)
        return self.step.emit.ops(
            "Scan",
            len(body.outputs),
            *states,
            *read,
            body=body,
            num_scan_inputs=len(read),
            scan_input_directions=[way] * len(read),
            scan_output_directions=[way] * count,
        )

    def slopes(self) -> tuple[ir.Value, ir.Value]:
        """Gradient of the states behind every step, and of the last one once more."""
        emit, outputs = self.step.emit, self.step.gradients
        if outputs[0] is not None:
            every = self.own(outputs[0], axis=1)
        else:
            nothing = emit.number(0.0, self.step.input())
            every = emit.op("Expand", nothing, emit.shape(self.states()))
        return every, self.state(outputs[1] if len(outputs) > 1 else None)


@dataclass(frozen=True)
class _Slopes:
    """Gradients along one direction.

    Attributes:
        arguments: of what the gates are made of, [steps, batch, gates * hidden].
        states: of those before the first step, [batch, hidden].
        recurrent: of what the recurrent products give, gate by gate, each with what was multiplied,
            [steps, batch, hidden].
    """

    arguments: ir.Value
    states: Sequence[ir.Value]
    recurrent: Sequence[tuple[ir.Value, ir.Value]]


def _lstm(direction: _Direction) -> _Slopes:
    emit, x, outputs = direction.step.emit, direction.step.input(), direction.step.gradients
    before = direction.before()
    made = emit.op("Add", direction.product(x, 1, 0, 4), direction.product(before, 2, 0, 4))
    i, o, f = (emit.op("Sigmoid", direction.gates(made, gate, gate + 1)) for gate in range(3))
    n = emit.op("Tanh", direction.gates(made, 3, 4))
    cells = direction.scan(_CELL, [direction.initial(6)], [emit.op("Mul", i, n), f], turned=False)
    every, last = direction.slopes()
    cell = direction.state(outputs[2] if len(outputs) > 2 else None)
    weight = direction.own(direction.step.input(2))
    read = [every, i, o, f, n, cells[1], cells[2]]
    dh, dc, _, da = direction.scan(_LSTM, [last, cell, weight], read, turned=True)
    return _Slopes(da, [dh, dc], [(da, before)])


def _gru(direction: _Direction) -> _Slopes:
    emit, x, before = direction.step.emit, direction.step.input(), direction.before()
    made = emit.op("Add", direction.product(x, 1, 0, 2), direction.product(before, 2, 0, 2))
    z, r = (emit.op("Sigmoid", direction.gates(made, gate, gate + 1)) for gate in range(2))
    after = bool(direction.step.attribute("linear_before_reset", 0))
    kept = before if after else emit.op("Mul", r, before)
    recurrent = direction.product(kept, 2, 2, 3)
    share = emit.op("Mul", r, recurrent) if after else recurrent
    n = emit.op("Tanh", emit.op("Add", direction.product(x, 1, 2, 3), share))
    every, last = direction.slopes()
    weight = direction.own(direction.step.input(2))
    states = [last, direction.gates(weight, 0, 2, axis=0), direction.gates(weight, 2, 3, axis=0)]
    text = _GRU.replace("RESET", _RESET_AFTER if after else _RESET_BEFORE)
    dh, _, _, da = direction.scan(text, states, [every, z, r, n, before, recurrent], turned=True)
    dn = direction.gates(da, 2, 3)
    pairs = [(direction.gates(da, 0, 2), before), (emit.op("Mul", dn, r) if after else dn, kept)]
    return _Slopes(da, [dh], pairs)


def _rnn(direction: _Direction) -> _Slopes:
    every, last = direction.slopes()
    states = [last, direction.own(direction.step.input(2))]
    dh, _, da = direction.scan(_RNN, states, [every, direction.states()], turned=True)
    return _Slopes(da, [dh], [(da, direction.before())])


def _layer(cell: Callable[[_Direction], _Slopes]) -> Rule:
    """Rule of a layer: directions share what they read, and have weights of their own."""

    def rule(step: GradientStep) -> Mapping[int, ir.Value]:
        _require_plain(step)
        emit, total = step.emit, None
        own: dict[int, list[ir.Value]] = {}
        way = step.attribute("direction", "forward")
        for number in range(emit.shape_seen(step.input(2))[0]):
            direction = _Direction(step, number, way == "reverse" or number == 1)
            slopes = cell(direction)
            if 0 in step.wanted:
                weight = direction.own(step.input(1))
                total = emit.total(total, emit.op("MatMul", slopes.arguments, weight))
            for slot, gradient in _of_weights(step, slopes).items():
                own.setdefault(slot, []).append(emit.unsqueeze(gradient, [0]))
        gradients = {slot: emit.op("Concat", *parts, axis=0) for slot, parts in own.items()}
        return gradients if total is None else gradients | {0: total}

    return rule


def _of_weights(step: GradientStep, slopes: _Slopes) -> dict[int, ir.Value]:
    """What belongs to one direction: weights, bias and first states, those that are wanted."""
    emit, gradients = step.emit, {}
    if 1 in step.wanted:
        gradients[1] = _outer(step, slopes.arguments, step.input())
    if 2 in step.wanted:
        parts = [_outer(step, slope, read) for slope, read in slopes.recurrent]
        gradients[2] = emit.op("Concat", *parts, axis=0)
    if 3 in step.wanted:
        made = [slopes.arguments, *(slope for slope, _ in slopes.recurrent)]
        sums = [emit.reduce("ReduceSum", slope, [0, 1], keep=False) for slope in made]
        gradients[3] = emit.op("Concat", *sums, axis=0)
    states = dict(enumerate(slopes.states, _HIDDEN_STATE))
    return gradients | {slot: states[slot] for slot in step.wanted & states.keys()}


def _outer(step: GradientStep, slope: ir.Value, read: ir.Value) -> ir.Value:
    """Products of two vectors, added up over all steps and samples."""
    emit = step.emit
    rows = [
        emit.reshape(value, emit.joined(emit.integers(-1), emit.extents(value, 2, 3)))
        for value in (slope, read)
    ]
    return emit.op("Gemm", *rows, transA=1)


def _require_plain(step: GradientStep) -> None:
    usual = _ACTIVATIONS[step.node.op_type]
    named = tuple(step.attribute("activations") or usual)
    if any(name != usual[place % len(usual)] for place, name in enumerate(named)):
        raise NoGradient(f"its activations are {', '.join(named)}, expected {', '.join(usual)}")
    if step.attribute("clip") is not None or int(step.attribute("input_forget", 0)):
        raise NoGradient("it clips or couples gates, expected a plain cell")
    if int(step.attribute("layout", 0)) or step.has(4) or step.has(7):
        raise NoGradient("it has a layout, lengths or peepholes, expected none")
    if not step.output.name:
        step.output.name = f"{step.node.outputs[1].name}/states"


RULES: dict[tuple[str, str], Rule] = {
    ("", "LSTM"): _layer(_lstm),
    ("", "GRU"): _layer(_gru),
    ("", "RNN"): _layer(_rnn),
}
"""Rule of every operator, by domain and name."""
