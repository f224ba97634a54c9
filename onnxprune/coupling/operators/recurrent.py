"""LSTM, GRU and RNN: hidden units.

One hidden unit owns a row of every gate block of W, R and B, a column of R, and its entry of the
initial states and outputs. Directions keep equally many units, and none disappears. A removed unit
computes exactly zero (its candidate is tanh(0) and its state starts at 0), so nothing is lost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.labels import AxisLabel, Operand, TensorLabels, join
from onnxprune.coupling.relations import Origin
from onnxprune.coupling.step import Refusal, RuleTable, Step

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
_PARAMETERS = (1, 2, 3)
_STATES = (5, 6)
_PEEPHOLES = 7
# f(0) = 0; a unit whose inputs, state and bias are zero then stays zero.
_ZERO_TO_ZERO = frozenset(
    {"Tanh", "Relu", "LeakyRelu", "ScaledTanh", "Elu", "Softsign", "ThresholdedRelu"}
)


def _recurrent(step: Step) -> None:
    gates = _GATES[step.node.op_type]
    if step.attribute("layout", 0):
        raise Refusal(f"{step.node.op_type} with layout 1")
    if step.has(_PEEPHOLES):
        raise Refusal("an LSTM with peepholes")
    directions, _, hidden = step.shape(2)
    units = step.relations.fresh((directions, hidden), Origin(step.name(2), 2))
    step.relations.rectangle(units)
    if directions > 1:
        whole = step.relations.conjunction(units)
        step.relations.freeze(whole, "a direction has to keep some units")
    data = step.read(0)
    axis_labels = step.fix(data, (0, 1), "a recurrent layer runs along it")
    inputs = tuple(label for label in axis_labels if 2 in label.axes)
    rows = np.tile(units, gates)
    _require(step, 1, (AxisLabel((0, 1), rows), *inputs))
    _require(step, 2, (AxisLabel((0, 1), rows), AxisLabel((0, 2), units)))
    if step.has(3):
        _require(step, 3, (AxisLabel((0, 1), np.tile(units, 2 * gates)),))
    for slot in _STATES:
        if step.has(slot):
            _require(step, slot, (AxisLabel((0, 2), units),))
    if inputs and step.peek(1).constant:
        step.note_consumer(data, 2, step.name(1), 2)
    _emit(step, units)


def _require(step: Step, slot: int, axis_labels: tuple[AxisLabel, ...]) -> None:
    """Tie an input to the labels it has to carry."""
    labels = step.read(slot)
    wanted = TensorLabels(labels.name, labels.shape, axis_labels)
    join(step.relations, [Operand.of(wanted), Operand.of(labels)])


def _emit(step: Step, units: NDArray[np.int32]) -> None:
    given = (*_PARAMETERS, *_STATES)
    zero = _stays_zero(step) and all(step.peek(slot).zero for slot in given if step.has(slot))
    for slot in step.outputs():
        axes = (1, 3) if slot == 0 else (0, 2)
        step.emit([AxisLabel(axes, units)], slot, zero=zero)


def _stays_zero(step: Step) -> bool:
    """Whether the activations other than those of the gates map zero to zero."""
    count = _ACTIVATIONS[step.node.op_type]
    names = step.attribute("activations") or ()
    return all(name in _ZERO_TO_ZERO for i, name in enumerate(names) if count == 1 or i % count > 0)


RULES: RuleTable = {("", op): _recurrent for op in _GATES}
