"""The loss of a student against its teacher, as ONNX nodes, and what they read for each batch.

    L = T^2 KL(teacher || student) at T = 2      class scores, probabilities
      + |y - t|^2                                quantities
      + a sum_b |s_b - f_b|^2                    features: tensors inside that both have, in rows
                                                 that any of the above depends on

each in units of what a model scores that always gives the same, rows weighted as where models are
compared (`verification/divergence.py`), features over their variance. Labels add the cross-entropy,
or the squared error, of the answers. Source: Hinton et al. 2015; Romero et al. 2015 (features).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.gradients.backward import Added
from onnxprune.gradients.differentiated import EmittedLoss
from onnxprune.gradients.emitter import Emitter
from onnxprune.gradients.losses import heads_of
from onnxprune.verification.divergence import (
    AS_QUANTITIES,
    TEMPERATURE,
    distribution_spread,
    variance,
)
from onnxprune.verification.measures import OutputKind, OutputMeasure, output_measures
from onnxprune.verification.row_weights import RowWeights

_PREFIX = "onnxprune/loss"
OF_OUTPUTS, OF_FEATURES = f"{_PREFIX}/outputs", f"{_PREFIX}/features"
_FEATURE_WEIGHT = 30.0
"""Of all features together, beside the outputs."""
_SMALLEST = 1e-7  # of probabilities
_MASKED = -1e4  # in place of scores of minus infinity


@dataclass(frozen=True)
class _Part:
    """One output in the loss.

    Attributes:
        measure: how it is compared.
        tensor: of the student that the gradient is taken with respect to.
        scale: of decisions, what their divergence is divided by.
        error_scale: the same of quantities.
    """

    measure: OutputMeasure
    tensor: str
    scale: float
    error_scale: float

    @property
    def decides(self) -> bool:
        """Whether it is compared as a distribution."""
        return self.measure.kind is not OutputKind.QUANTITIES

    @property
    def measures_error(self) -> bool:
        """Whether it is compared by its squared error."""
        return not self.decides or self.measure.unsure

    def name(self, what: str) -> str:
        """Name of an input of the loss."""
        return f"{_PREFIX}/{self.measure.name}/{what}"


@dataclass(frozen=True)
class Feature:
    """A tensor inside the student, and what of the teacher it stands for.

    Attributes:
        name: of the tensor in both.
        kept: by axis of the teacher's tensor, the indices that the student has.
        variance: of the teacher's tensor, around the mean of each channel, above 0.
    """

    name: str
    kept: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)
    variance: float = 1.0


def channel_axis(rank: int) -> int:
    """Axis of the channels of a feature: the second of four axes and more, else the last."""
    return 1 if rank > 3 else rank - 1


class DistillationLoss:
    """Compares a student with its teacher.

    Args:
        student: tells where gradients of the loss begin.
        teacher: with the same outputs; tells how they are compared.
        outputs: of the teacher on some batches, which say what counts how much.
        features: tensors that are compared as well.
        labelled: gradients with respect to the outputs come in besides, from labels.
        taught: the teacher's outputs count; else only what comes in besides.

    Attributes:
        features: names of the tensors that are compared.
    """

    def __init__(
        self,
        student: ir.Model,
        teacher: ir.Model,
        outputs: Sequence[Mapping[str, Any]],
        features: Sequence[Feature] = (),
        *,
        labelled: bool = False,
        taught: bool = True,
    ) -> None:
        measures = output_measures(teacher, outputs)
        self._weights = RowWeights(measures, outputs)
        self.features = tuple(feature.name for feature in features)
        self._features = list(features)
        self._labelled, self._taught = labelled, taught
        tensors = {head.output: head.tensor for head in heads_of(student, None)}
        self._samples = 1
        self._parts = []
        for name, measure in measures.items():
            arrays = [batch[name] for batch in outputs]
            weights = np.concatenate([self._weights.of(name, batch) for batch in outputs])
            self._samples = sum(len(array) if array.ndim else 1 for array in arrays)
            decides = measure.kind is not OutputKind.QUANTITIES
            self._parts.append(
                _Part(
                    measure,
                    tensors.get(name, name) if measure.kind is OutputKind.SCORES else name,
                    distribution_spread(measure, arrays, weights) if decides else 1.0,
                    1.0 if measure.boxes is not None else variance(measure, arrays, weights),
                )
            )

    def emit(self, emit: Emitter, values: Mapping[str, ir.Value]) -> EmittedLoss:
        """Append the loss and its gradients; see `EmittedLoss`."""
        writer = _Writer(emit, values)
        for part in self._parts if self._taught else ():
            writer.add_output(part)
        share = _FEATURE_WEIGHT / max(len(self._features), 1)
        later = {feature.name: writer.feature(feature, share) for feature in self._features}
        for tensor in dict.fromkeys(part.tensor for part in self._parts if self._labelled):
            writer.add_given(tensor)

        def totals() -> list[ir.Value]:
            outputs = [writer.total(OF_OUTPUTS), writer.total(OF_FEATURES)]
            if self._labelled:
                outputs += [values[part.measure.name] for part in self._parts]
            return outputs

        return EmittedLoss(writer.slopes, writer.inputs, later, totals)

    def feed(
        self, outputs: Mapping[str, NDArray[Any]], features: Mapping[str, NDArray[Any]], rows: int
    ) -> dict[str, NDArray[np.float32]]:
        """What the loss reads for a batch.

        Args:
            outputs: of the teacher.
            features: of the teacher, by name.
            rows: samples in the batch; the loss is that of one sample on average.
        """
        fed: dict[str, NDArray[Any]] = {}
        for part in self._parts if self._taught else ():
            measure = part.measure
            array = outputs[measure.name]
            weights = self._weights.of(measure.name, outputs)
            weights = weights * self._samples / (rows * len(self._parts))
            if part.decides:
                fed[part.name("logarithms")] = _log_probabilities(measure, array)
                fed[part.name("weights")] = _by_row(measure, weights / part.scale, array.shape)
            if part.measures_error:
                share = AS_QUANTITIES if measure.unsure else 1.0
                target, factor = _error_target(measure, array, weights * share / part.error_scale)
                fed[part.name("target")], fed[part.name("factor")] = target, factor
        fed |= {f"{_PREFIX}/{name}/feature": array for name, array in features.items()}
        return {name: np.asarray(array, np.float32) for name, array in fed.items()}

    def given(
        self, slopes: Mapping[str, NDArray[np.float64]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[np.float32]]:
        """What the loss reads of labels for a batch.

        Args:
            slopes: gradients of the loss of the labels, by tensor.
            outputs: of the student; its tensors have their shapes.
        """
        shapes = {part.tensor: outputs[part.measure.name].shape for part in self._parts}
        scales = {p.tensor: p.scale if p.decides else p.error_scale for p in self._parts}
        return {
            f"{_PREFIX}/{tensor}/given": np.asarray(
                slopes[tensor] / scale if tensor in slopes else np.zeros(shapes[tensor]), np.float32
            )
            for tensor, scale in scales.items()
        }


class _Writer:
    """Appends a loss part by part.

    Attributes:
        slopes: gradients so far, by tensor.
        inputs: what the loss reads.
    """

    def __init__(self, emit: Emitter, values: Mapping[str, ir.Value]) -> None:
        self._emit, self._values = emit, values
        self._totals: dict[str, ir.Value] = {}
        self.slopes: dict[str, ir.Value] = {}
        self.inputs: list[ir.Value] = []

    def add_output(self, part: _Part) -> None:
        """Append the loss of an output."""
        value = self._values[part.tensor]
        if part.decides:
            self._add_divergence(part, value)
        if part.measures_error:
            value = self._values[part.measure.name]
            target = self._input(part.name("target"), value)
            factor = self._input(part.name("factor"), value)
            apart = self._emit.op("Sub", value, target)
            weighted = self._emit.op("Mul", apart, factor)
            self._count(OF_OUTPUTS, self._emit.op("Mul", weighted, apart))
            self._slope(part.measure.name, self._emit.op("Add", weighted, weighted))

    def feature(self, feature: Feature, share: float) -> Added:
        """What appends the loss of a tensor inside.

        Rows that nothing depends on, such as padding, count nothing: their gradient is zero.
        """
        emit, value = self._emit, self._values[feature.name]
        target = self._input(f"{_PREFIX}/{feature.name}/feature", value)

        def append(slope: ir.Value | None) -> ir.Value:
            apart = emit.op("Sub", value, target)
            count = emit.op("Cast", emit.op("Size", value), to=int(ir.DataType.FLOAT))
            factor = emit.op("Div", emit.constant(np.float32(share / feature.variance)), count)
            if slope is not None:
                factor = emit.op(
                    "Mul", factor, self._counting(slope, channel_axis(emit.rank(value)))
                )
            weighted = emit.op("Mul", apart, factor)
            self._count(OF_FEATURES, emit.op("Mul", weighted, apart))
            return emit.op("Add", weighted, weighted)

        return append

    def _counting(self, slope: ir.Value, axis: int) -> ir.Value:
        """How much each row counts, 1 on average: nothing where its gradient is zero."""
        emit = self._emit
        largest = emit.reduce("ReduceMax", emit.op("Abs", slope), [axis])
        alive = emit.op("Greater", largest, emit.constant(np.float32(0)))
        counting = emit.op("Cast", alive, to=int(ir.DataType.FLOAT))
        mean = emit.op("ReduceMean", counting, keepdims=0)
        return emit.op("Div", counting, emit.op("Max", mean, emit.constant(np.float32(_SMALLEST))))

    def add_given(self, tensor: str) -> None:
        """Read a gradient with respect to a tensor, and add it."""
        value = self._values[tensor]
        given = self._input(f"{_PREFIX}/{tensor}/given", value)
        # a single zero stands for all where only outputs are wanted
        self._slope(tensor, self._emit.op("Expand", given, self._emit.op("Shape", value)))

    def total(self, name: str) -> ir.Value:
        """Append an output, the sum of all parts of this name."""
        emit = self._emit
        total = self._totals.get(name) or emit.constant(np.float32(0))
        result = emit.op("Identity", total)
        result.name, result.type = name, ir.TensorType(ir.DataType.FLOAT)
        return result

    def _add_divergence(self, part: _Part, value: ir.Value) -> None:
        """T^2 KL with respect to scores, or to what a softmax or sigmoid gave."""
        emit, measure = self._emit, part.measure
        logs = self._input(part.name("logarithms"), value)
        weights = self._input(part.name("weights"), value)
        scores, back = self._scores(part, value)
        raised = emit.op("Mul", scores, emit.constant(np.float32(1 / TEMPERATURE)))
        if measure.kind is OutputKind.PROBABILITIES:
            probability = emit.op("Sigmoid", raised)
            wanted = emit.op("Exp", logs)
            apart = emit.op("Sub", probability, wanted)
            other = emit.op("Sub", emit.constant(np.float32(1)), wanted)
            divergence = self._binary(wanted, other, logs, raised)
        else:
            axes = _class_axes(measure, emit.rank(value))
            shifted = emit.op("Sub", raised, emit.reduce("ReduceMax", raised, axes))
            grown = emit.op("Exp", shifted)
            total = emit.reduce("ReduceSum", grown, axes)
            own = emit.op("Sub", shifted, emit.op("Log", total))
            wanted = emit.op("Exp", logs)
            apart = emit.op("Sub", emit.op("Div", grown, total), wanted)
            divergence = emit.op("Mul", wanted, emit.op("Sub", logs, own))
        factor = emit.op("Mul", weights, emit.constant(np.float32(TEMPERATURE**2)))
        self._count(OF_OUTPUTS, emit.op("Mul", divergence, factor))
        slope = emit.op(
            "Mul", apart, emit.op("Mul", weights, emit.constant(np.float32(TEMPERATURE)))
        )
        self._slope(part.tensor, slope if back is None else emit.op("Mul", slope, back))

    def _scores(self, part: _Part, value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """Scores before the softmax, and their derivative where probabilities are all there is."""
        emit, measure = self._emit, part.measure
        least, most = (emit.constant(np.float32(n)) for n in (_SMALLEST, 1 - _SMALLEST))
        if measure.kind is OutputKind.PROBABILITIES:
            inside = emit.op("Min", emit.op("Max", value, least), most)
            other = emit.op("Sub", emit.constant(np.float32(1)), inside)
            scores = emit.op("Log", emit.op("Div", inside, other))
            return scores, emit.op("Reciprocal", emit.op("Mul", inside, other))
        if part.tensor == measure.name and not measure.logs:
            inside = emit.op("Max", value, least)
            return emit.op("Log", inside), emit.op("Reciprocal", inside)
        return emit.op("Max", value, emit.constant(np.float32(_MASKED))), None

    def _binary(
        self, wanted: ir.Value, other: ir.Value, logs: ir.Value, raised: ir.Value
    ) -> ir.Value:
        """KL of yes and no: p log(p / q) and the same of 1 - p, with log q = -softplus(-x)."""
        emit = self._emit
        least = emit.constant(np.float32(_SMALLEST))
        yes = emit.op("Add", logs, emit.op("Softplus", emit.op("Neg", raised)))
        no = emit.op(
            "Add", emit.op("Log", emit.op("Max", other, least)), emit.op("Softplus", raised)
        )
        return emit.op("Add", emit.op("Mul", wanted, yes), emit.op("Mul", other, no))

    def _input(self, name: str, like: ir.Value) -> ir.Value:
        kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * self._emit.rank(like))
        value = ir.Value(name=name, type=kind, shape=shape)
        self.inputs.append(value)
        return value

    def _count(self, name: str, value: ir.Value) -> None:
        summed = self._emit.op("ReduceSum", value, keepdims=0)
        self._totals[name] = self._emit.total(self._totals.get(name), summed)

    def _slope(self, tensor: str, slope: ir.Value) -> None:
        self.slopes[tensor] = self._emit.total(self.slopes.get(tensor), slope)


def _class_axes(measure: OutputMeasure, rank: int) -> list[int]:
    axis = measure.layout.axis % rank
    return list(range(axis, rank)) if measure.layout.flattened else [axis]


def _log_probabilities(measure: OutputMeasure, array: NDArray[Any]) -> NDArray[Any]:
    """Logarithms of the teacher's probabilities at the temperature, shaped like its output."""
    if measure.kind is OutputKind.PROBABILITIES:
        values = np.clip(array.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
        scores = np.log(values / (1 - values)) / TEMPERATURE
        return np.asarray(-np.logaddexp(0, -scores))
    rows = measure.rows(array)
    possible = np.isfinite(rows) if measure.logs else measure.plain_rows(array) > 0
    rows = np.where(possible, rows, _MASKED) / TEMPERATURE
    shifted = rows - rows.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return measure.layout.from_rows(logs, array.shape)


def _by_row(
    measure: OutputMeasure, weights: NDArray[np.float64], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Weights of rows, shaped so that they broadcast over an output."""
    if measure.kind is OutputKind.PROBABILITIES:
        return weights.reshape(shape)
    axes = _class_axes(measure, len(shape))
    kept = tuple(1 if axis in axes else extent for axis, extent in enumerate(shape))
    return weights.reshape(kept)


def _error_target(
    measure: OutputMeasure, array: NDArray[Any], weights: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What an output of quantities is to be, and what its squared error is multiplied by."""
    rows = measure.plain_rows(array)
    factor = np.broadcast_to(weights[:, None], rows.shape)
    if measure.boxes is not None:
        factor = factor / measure.box_units(array)
    factor = np.where(np.isfinite(rows), factor, 0.0)
    target = np.where(np.isfinite(rows), rows, 0.0)
    if array.ndim < 2:
        return target.reshape(array.shape), factor.reshape(array.shape)
    layout = measure.layout
    return layout.from_rows(target, array.shape), layout.from_rows(factor, array.shape)
