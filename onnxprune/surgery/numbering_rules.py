"""What each op makes of value numbers (`numbering.py`).

    linear        f x -> f y(x)
    homogeneous   f x -> |f| y(sign(f) x)                    Relu, LeakyRelu, MaxPool, ...
    product       (f x) * (g z) -> (f g) y(x, z)             Mul, depthwise Conv
    sum           f x + g z -> norm(f, g) y(x, z, direction of (f, g))
    anything      f x -> y(x, f)                             Gelu, Sigmoid, Clip, ...

x, z are the numbers, y the new number; units of the same (...) get the same y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from onnxprune.surgery.numbering import NodeView

__all__ = ["ABSENT", "NUMBERING", "ONE", "ZERO", "Values"]

ABSENT, ZERO, ONE = -1, 0, 1
"""Numbers with a meaning: not there, zero everywhere, one everywhere."""

# Movement of data: what is one everywhere stays so.
_MOVEMENT = ["Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"]
_MOVEMENT += ["Tile", "Split", "DepthToSpace", "SpaceToDepth"]
# The order of a unit's own places may change, so it must have one only.
_PICKING = ["Slice", "Gather"]
_LINEAR = ["Neg", "Dropout", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"]
_POSITIVE = ["Relu", "LeakyRelu", "Abs", "MaxPool", "GlobalMaxPool", "LpPool", "GlobalLpPool"]
_POSITIVE += ["ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"]
_ANYTHING = ["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos"]
_ANYTHING += ["Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"]
_ANYTHING += ["InstanceNormalization", "Log", "Max", "Min", "Mish", "Pow", "Reciprocal", "Round"]
_ANYTHING += ["Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "LogSoftmax"]
_ANYTHING += ["Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where"]
_FLOATS = frozenset({"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"})


@dataclass(frozen=True)
class Values:
    """What the units of a group hold at a tensor: factor_u * R[number_u].

    Attributes:
        number: int [size].
        factor: float [size]; 0 where the number is `ZERO`.
    """

    number: NDArray[np.int64]
    factor: NDArray[np.float64]


def _linear(view: NodeView) -> Values | None:
    return view.renumbered(view.values(0)) if view.carried.keys() == {0} else None


def _movement(view: NodeView) -> Values | None:
    return view.values(0) if view.carried.keys() == {0} else None


def _picking(view: NodeView) -> Values | None:
    return _linear(view) if view.single() else None


def _cast(view: NodeView) -> Values | None:
    to = ir.DataType(view.attribute("to", ir.DataType.FLOAT)).name
    return _movement(view) if to in _FLOATS else None


def _positive(view: NodeView) -> Values | None:
    if view.carried.keys() != {0}:
        return None
    given = view.values(0)
    positive = Values(given.number, np.abs(given.factor))
    return view.renumbered(positive, (given.factor < 0).astype(np.int64))


def _prelu(view: NodeView) -> Values | None:
    if 0 not in view.carried or not view.aligned():
        return None
    given = view.values(0)
    keys, rows = [given.number, (given.factor < 0).astype(np.int64)], np.zeros(len(given.number))
    if 1 in view.carried:
        slope = view.values(1)
        keys, rows = [*keys, slope.number], slope.factor
    found = view.classify(keys, rows[:, np.newaxis], scaled=False)
    number = np.where(given.number <= 0, given.number, found.number)
    return Values(number, np.abs(given.factor))


def _anything(view: NodeView) -> Values | None:
    if not view.carried or not view.aligned():
        return None
    given = [view.values(slot) for slot in view.carried]
    rows = np.stack([one.factor for one in given], axis=1)
    # each input by itself: a row is compared relative to its norm
    keys = [view.classify([one.number], one.factor[:, np.newaxis], scaled=False) for one in given]
    made = view.classify([one.number for one in keys], np.zeros_like(rows), scaled=False)
    number = made.number
    if view.zero_to_zero():
        number = np.where((rows == 0).all(axis=1), 0, number)
    return Values(number, np.where(number == 0, 0.0, 1.0))


def _product(view: NodeView, left: Values, right: Values, *, divide: bool = False) -> Values:
    zero = (left.number == 0) | (right.number == 0)
    with np.errstate(all="ignore"):
        factor = left.factor / right.factor if divide else left.factor * right.factor
    number = view.renumbered(Values(left.number, factor), right.number).number
    lost = ~np.isfinite(factor) | ((factor == 0) & ~zero)
    number = np.where(lost, view.numbering.fresh(len(number)), np.where(zero, 0, number))
    absent = (left.number < 0) | (right.number < 0)
    return Values(np.where(absent, -1, number), np.where(lost, 1.0, np.where(zero, 0, factor)))


def _mul(view: NodeView) -> Values | None:
    if not view.carried or not view.aligned():
        return None
    given = [view.values(slot) for slot in view.carried]
    return view.renumbered(given[0]) if len(given) == 1 else _product(view, given[0], given[1])


def _div(view: NodeView) -> Values | None:
    if view.carried.keys() == {1}:
        return _anything(view)
    if not view.aligned():
        return None
    given = [view.values(slot) for slot in view.carried]
    if len(given) == 1:
        return view.renumbered(given[0])
    return None if (given[1].number == 0).any() else _product(view, *given, divide=True)


def _together(view: NodeView, terms: Sequence[Values]) -> Values:
    """Terms side by side; a unit that a term does not have has zero there."""
    numbers = [np.maximum(one.number, ZERO) for one in terms]
    rows = np.stack([np.where(one.number > ZERO, one.factor, 0.0) for one in terms], axis=1)
    found = view.classify(numbers, rows, scaled=True)
    absent = np.all([one.number == ABSENT for one in terms], axis=0)
    number = np.where(found.factor == 0, ZERO, found.number)
    return Values(np.where(absent, ABSENT, number), found.factor)


def _sum(view: NodeView, terms: Sequence[Values]) -> Values:
    made = _together(view, terms)
    plain = np.all([one.number <= ONE for one in terms], axis=0) & (made.number > ZERO)
    total = np.sum([np.where(one.number == ONE, one.factor, 0.0) for one in terms], axis=0)
    number = np.where(plain, np.where(total == 0, ZERO, ONE), made.number)
    return Values(number, np.where(plain, total, made.factor))


def _signed(sign: float) -> Callable[[NodeView], Values | None]:
    def rule(view: NodeView) -> Values | None:
        if not view.carried or not view.aligned():
            return None
        terms = []
        for slot in range(len(view.node.inputs)):
            one = view.values(slot) if slot in view.carried else view.common(slot)
            terms.append(Values(one.number, one.factor * (sign if slot else 1.0)))
        return _sum(view, terms)

    return rule


def _concat(view: NodeView) -> Values | None:
    return _together(view, [view.values(slot) for slot in view.carried]) if view.carried else None


def _pad(view: NodeView) -> Values | None:
    """Zeros around: what is only padding is zero."""
    if view.carried.keys() != {0} or view.attribute("mode", "constant") != "constant":
        return None
    value = view.constant(2)
    if (view.has(2) and (value is None or np.any(value))) or view.attribute("value", 0.0):
        return None
    made = view.renumbered(view.values(0))
    number = np.maximum(made.number, 0)
    return Values(number, np.where(number == 0, 0.0, made.factor))


def _convolution(view: NodeView) -> Values | None:
    groups = int(view.attribute("group", 1))
    if 1 not in view.carried:
        return None
    made = view.values(1)
    if groups == 1:
        if 0 in view.carried:
            return None
        made = view.renumbered(made)
    elif 0 in view.carried:
        made = _product(view, view.values(0), made)
    elif view.node.op_type == "Conv" and view.carried[1].axes == (0,):
        made = view.renumbered(made, _row(view) // _rows_of(view, groups))
    else:
        return None
    return _biased(view, made)


def _row(view: NodeView) -> NDArray[np.int64]:
    """The first row of a grouped convolution's weight that is a unit's."""
    units = view.carried[1].units.ravel()
    mine = np.flatnonzero(units >= 0)[::-1]
    row = np.zeros(view.numbering.group.size, np.int64)
    row[units[mine]] = mine
    return row


def _rows_of(view: NodeView, groups: int) -> int:
    return int(view.carried[1].units.size) // groups


def _biased(view: NodeView, made: Values, scale: float = 1.0) -> Values | None:
    if not view.has(2):
        return made
    if 2 not in view.carried:
        return None
    bias = view.values(2)
    return _sum(view, [made, Values(bias.number, bias.factor * scale)])


def _gemm(view: NodeView) -> Values | None:
    factors = view.carried.keys() - {2}
    if len(factors) != 1:
        return None
    alpha, beta = float(view.attribute("alpha", 1.0)), float(view.attribute("beta", 1.0))
    made = view.renumbered(view.values(factors.pop()))
    return _biased(view, Values(made.number, made.factor * alpha), beta)


def _contraction(view: NodeView) -> Values | None:
    slots = list(view.carried)
    return view.renumbered(view.values(slots[0])) if len(slots) == 1 else None


def _batch_normalisation(view: NodeView) -> Values | None:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift."""
    if view.carried.keys() != {0, 1, 2, 3, 4} or view.attribute("training_mode", 0):
        return None
    scale, shift, mean, variance = (view.values(slot) for slot in (1, 2, 3, 4))
    known = [np.isin(one.number, (0, 1)).all() for one in (scale, shift, mean, variance)]
    if not all(known) or not view.aligned():
        return None
    given = view.values(0)
    gain = scale.factor / np.sqrt(variance.factor + float(view.attribute("epsilon", 1e-5)))
    offset = shift.factor - mean.factor * gain
    if not np.isfinite(gain).all():
        return None
    one = Values(np.where(offset == 0, 0, 1), offset)
    scaled = Values(np.where(gain == 0, 0, given.number), given.factor * gain)
    return _sum(view, [scaled, one])


NUMBERING: dict[str, Callable[[NodeView], Values | None]] = {
    **dict.fromkeys(_MOVEMENT, _movement),
    **dict.fromkeys(_PICKING, _picking),
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(_POSITIVE, _positive),
    **dict.fromkeys(_ANYTHING, _anything),
    "Cast": _cast,
    "PRelu": _prelu,
    "Mul": _mul,
    "Div": _div,
    "Add": _signed(1.0),
    "Sum": _signed(1.0),
    "Sub": _signed(-1.0),
    "Concat": _concat,
    "Pad": _pad,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "MatMul": _contraction,
    "Einsum": _contraction,
    "BatchNormalization": _batch_normalisation,
}
