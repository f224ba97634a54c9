"""Bias folding: the mean contribution of removed channels goes into the biases of their readers.

Formula, for a linear node y = W x + b that reads kept channels S and removed channels P::

    b' = b + average over positions of (W_P mean(x_P))

Before::

    x [N,64,H,W] -> Conv(W [32,64,3,3], b [32], pads 1) -> y

After (channels 3 and 17 are to go)::

    x with 3, 17 ignored -> Conv(W, b + contribution of mean(x_3), mean(x_17)) -> y

The contribution is computed by running the node itself on the means, so pads, strides, dilation,
groups, transposition and flattening need no formula of their own.

**Constant channels and zero padding.** A zero-padded convolution sees fewer taps at the border, so
there a constant channel contributes less than in the middle, and no bias can say that. A channel
that is the same in every calibration sample is therefore removed exactly:

* its contribution is computed from its real values at every position; when it is the same
  everywhere, at all traced sizes, it goes into the bias;
* otherwise, for channels of one constant value, a convolution of a single channel of ones with the
  summed taps sum_j W[:, j] x_j, with the same pads and strides, is added to the output: it gives
  exactly what the constant channels gave, border included, for any image size (onnxruntime folds
  it into a constant where the size is fixed);
* otherwise (the constant differs from position to position, as behind a padded depthwise
  convolution) the contribution itself is added as a constant, where its shape is fixed and it is
  no larger than the weights that go, or small; else its mean goes into the bias.

For channels that vary, mean(x_P) is taken as the same at every place (a flattened channel has a
mean for each place). The reader's average output is then kept exactly where it weighs all places
alike, or where their means are alike; a strided or padded convolution over a map that is brighter
in the middle gets a bias that is off by the difference.

Conditions: readers are Conv, ConvTranspose, Gemm, MatMul or Einsum with a constant weight. Products
of two activations have no bias and are left alone.

Source: An et al. 2024 (FLAP).
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.bodies import values_in_bodies
from onnxprune.calibration.moments import Moments, Tap
from onnxprune.coupling.analysis import tap_at
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.step import Consumer
from onnxprune.model.observe import ConstantValues
from onnxprune.model.runtime import Runtime
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import (
    LINEAR_OPS,
    SMALL_MAP,
    add_border_exact_constant,
    apply_linear,
    axes_of_weight,
    linear_node,
)

_SAME = 1e-6
"""Relative difference up to which float32 values count as equal."""


@dataclass(frozen=True)
class _Removed:
    """The removed part of one reader's input.

    Attributes:
        means: activation with the mean at removed positions that vary, else zero.
        even: activation with the values at removed positions of one constant value, else zero.
        uneven: the same for removed positions whose constant differs from place to place.
    """

    means: NDArray[np.float64]
    even: NDArray[np.float64]
    uneven: NDArray[np.float64]


def fold_means(
    target: EditableModel,
    cut: Cut,
    moments: Mapping[Tap, Moments],
    samples: Iterable[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
    skip: Collection[str] = (),
    *,
    exact: bool = False,
) -> bool:
    """Fold the mean contribution of removed channels into their readers.

    Args:
        target: the model at full size and its coupling; both are updated.
        cut: what is going to be removed.
        moments: activation statistics by tap, for every reader.
        samples: calibration feeds, to read the values of constant channels from the first in which
            their reader runs.
        runtime: how to run the model.
        skip: outputs of nodes that are not folded into, as they are re-fitted.
        exact: add constants of any size; else of a large constant map that outnumbers the weights
            it replaces only the mean is folded.

    Returns:
        Whether anything was changed. Nothing is folded into readers that never ran.
    """
    return _Folding(target, cut, moments, samples, runtime, skip, exact).apply()


@dataclass(frozen=True)
class _Folding:
    """The arguments of `fold_means`."""

    target: EditableModel
    cut: Cut
    moments: Mapping[Tap, Moments]
    samples: Iterable[Mapping[str, NDArray[Any]]]
    runtime: Runtime
    skip: Collection[str]
    exact: bool

    def apply(self) -> bool:
        """Fold; returns whether anything was changed."""
        model = self.target.model
        weights = ConstantValues(model, self.cut.coupling.facts.constants)
        work = [
            (consumer, label)
            for consumer in self.cut.coupling.consumers
            for label in self.cut.coupling.tensors[consumer.tensor].axis_labels
            if consumer.axis in label.axes
            and consumer.node not in self.skip
            and not self.cut.alive(label).all()
        ]
        originals = {}
        for consumer, _ in work:
            if consumer.weight is not None:
                # a weight that the model picks by its input has no value to fold with
                with contextlib.suppress(KeyError):
                    originals[consumer.weight] = weights[consumer.weight]
        values = self._constant_values(work)
        modified = False
        for consumer, label in work:
            node = linear_node(self.target.nodes, consumer.node)
            if consumer.weight not in originals or node is None or node.domain:
                continue
            if node.op_type not in LINEAR_OPS or self._tap(consumer, label) not in self.moments:
                continue
            key = consumer.body, consumer.tensor
            removed = self._removed(consumer, label, values.get(key))
            modified |= self._fold(node, consumer, removed, originals[consumer.weight])
        return modified

    def _constant_values(
        self, work: list[tuple[Consumer, AxisLabel]]
    ) -> dict[tuple[str, str], NDArray[Any]]:
        """Values, in one run, of activations with removed channels that never change, by body."""
        names: dict[str, list[str]] = defaultdict(list)
        for consumer, label in work:
            moments = self.moments.get(self._tap(consumer, label))
            if moments is None or 0 in label.axes:
                continue
            steady = moments.steady & ~self.cut.alive(label)
            if (steady & (moments.mean_square > 0)).any():
                names[consumer.body].append(consumer.tensor)
        return values_in_bodies(self.target.model, names, self.samples, self.runtime)

    def _tap(self, consumer: Consumer, label: AxisLabel) -> Tap:
        return tap_at(self.cut.coupling, consumer, label.axes)

    def _removed(
        self, consumer: Consumer, label: AxisLabel, values: NDArray[Any] | None
    ) -> _Removed:
        moments = self.moments[self._tap(consumer, label)]
        shape = list(self.cut.coupling.tensors[consumer.tensor].shape)
        if values is not None:
            shape = list(values.shape)
        if 0 not in label.axes:
            shape[0] = 1
        removed = ~self.cut.alive(label)
        steady = removed & moments.steady & (values is not None)
        means, even, uneven = (np.zeros(shape) for _ in range(3))
        _along(means, label.axes)[...] = np.where(removed & ~steady, moments.mean, 0.0)
        if values is not None and steady.any():
            constants = _along(values[:1].astype(np.float64), label.axes)
            others = tuple(range(constants.ndim - steady.ndim))
            spread = np.ptp(constants, axis=others)
            same = spread <= _SAME * np.abs(constants).max(axis=others)
            _along(even, label.axes)[...] = np.where(steady & same, constants, 0.0)
            _along(uneven, label.axes)[...] = np.where(steady & ~same, constants, 0.0)
        return _Removed(means, even, uneven)

    def _fold(
        self, node: ir.Node, consumer: Consumer, removed: _Removed, weight: NDArray[Any]
    ) -> bool:
        assert consumer.weight is not None
        names = [value.name if value is not None else None for value in node.inputs]
        if consumer.weight not in names:  # handed on as a state that never changes
            return False
        slot = names.index(consumer.weight)
        opset = self.target.model.opset_imports.get("", 1)
        varying = apply_linear(node, opset, removed.means, weight, slot)
        own = axes_of_weight(node, slot, weight.shape, varying.ndim)
        others = tuple(axis for axis in range(varying.ndim) if axis not in own)
        delta = varying.mean(axis=others, keepdims=True)
        rests = []
        for constants in (removed.even, removed.uneven):
            if not constants.any():
                continue
            maps = [
                apply_linear(node, opset, levels, weight, slot)
                for levels in self._at_all_sizes(node, constants, constants is removed.even)
            ]
            average = maps[0].mean(axis=others, keepdims=True)
            alike = all(np.abs(each - average).max() <= _SAME * np.abs(each).max() for each in maps)
            stored = constants is removed.uneven and not self.exact
            if alike or (stored and not self._pays_off(consumer, constants, maps[0], weight)):
                delta = delta + average
            else:
                rests.append((constants, maps[0]))
        if np.any(delta):
            self.target.add_to_output(node, delta, weight.dtype)
        for constants, contribution in rests:
            even = constants is removed.even
            add_border_exact_constant(self.target, node, constants, even, contribution, weight, own)
        return bool(np.any(delta)) or bool(rests)

    def _pays_off(
        self,
        consumer: Consumer,
        constants: NDArray[np.float64],
        contribution: NDArray[np.float64],
        weight: NDArray[Any],
    ) -> bool:
        """Whether a constant map of the contribution is no larger than the removed weights."""
        others = tuple(axis for axis in range(constants.ndim) if axis != consumer.axis)
        share = float(constants.any(axis=others).mean())
        return contribution.size <= max(share * weight.size, SMALL_MAP)

    def _at_all_sizes(
        self, node: ir.Node, constants: NDArray[np.float64], even: bool
    ) -> Iterator[NDArray[np.float64]]:
        """The same constants on maps of every traced size: a small map may be border all over."""
        yield constants
        if not even or node.op_type not in ("Conv", "ConvTranspose"):
            return
        facts, data = self.target.coupling.facts, node.inputs[0]
        assert data is not None
        assert data.name
        levels = constants[(slice(None), slice(None)) + (slice(1),) * (constants.ndim - 2)]
        for observed in (facts.first, facts.second):
            size = observed.shapes[data.name][2:]
            if size != constants.shape[2:]:
                yield np.broadcast_to(levels, (*constants.shape[:2], *size))


def _along(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """A view with `axes` last, in this order, so that labelled values broadcast into it."""
    return np.moveaxis(array, axes, range(-len(axes), 0))
