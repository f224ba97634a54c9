"""Sparsify: single weights become zero, anywhere or in a pattern; shapes stay as they are.

Formula, for a layer y = W x + b, scores s and a share a of weights to remove::

    magnitude   s = |w|                    W' = W where s is among the highest 1 - a, else 0
    wanda       s = |w| E[x^2]^1/2         the same
    obs         s = w^2 / [H^-1]_jj        W' as in sparsity/second_order.py

    b' = b + (W - W') E[x]                 where there are samples

Before::

    x [N,128] -> Gemm(W [64,128]) -> y

After (pattern 2:4)::

    x [N,128] -> Gemm(W' [64,128], two of every four entries of a row 0) -> y

* A dense runtime such as onnxruntime multiplies by zeros as by any other number, so the model does
  not become faster. The file becomes smaller when it is compressed, or with `store: sparse` where
  less than a third of a float32 weight is not zero (`model/tensors.py`). Hardware that skips 2:4
  zeros needs an engine of its own.
* `threshold: global` compares what weights add to the output of their layer, as a share of what all
  of its weights add: the scales of layers do not matter, and every layer keeps at least 5 %. By
  scores alone it is the better choice (ResNet-20 on CIFAR-10, Wanda, 50 and 70 % of the weights
  zero: 83.8 and 48.1 % accuracy, per layer 81.3 and 16.6 %). Second order, which re-fits the other
  weights, makes little difference between the two (86.0 and 84.3 %, per layer 86.0 and 84.9 %).
* A unit all of whose incoming or outgoing weights are zero is one that `remove-lossless` removes.

Conditions: float weights with a single consumer: Conv, ConvTranspose, Gemm, MatMul, or Einsum (but
not of a stack of matrices). Depthwise convolutions keep their weights: they have few, and need all
of them. The groups of a convolution are stacked into one matrix.

Source: Han et al. 2015; Sun et al. 2024 (Wanda); Frantar & Alistarh 2023 (SparseGPT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.calibration.batches import BatchBudget, load_held_batches
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.streams import Samples
from onnxprune.compensation.least_squares import LeastSquares
from onnxprune.compensation.regression.linear_layers import LinearLayer, replaceable_layers
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.analysis import is_selected, observe_model
from onnxprune.coupling.trace import trace
from onnxprune.errors import InputError
from onnxprune.model.inputs import listed_initializers
from onnxprune.model.observe import ConstantValues
from onnxprune.model.runtime import Runtime, matrix_threads
from onnxprune.model.tensors import mark_sparse, sparse_values
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.passes.sparsity.patterns import parse_pattern
from onnxprune.passes.sparsity.scores import (
    InputMoments,
    input_moments,
    input_order,
    layer_amounts,
    shares_of_output,
    weight_scores,
)
from onnxprune.passes.sparsity.second_order import ZerosOnceSolved
from onnxprune.progress import Progress, silent
from onnxprune.surgery.editable_model import EditableModel


class SparsifyWeights(Pass, ir.passes.InPlacePass):
    """Set single weights to zero, anywhere, N of every M, or in blocks; shapes stay.

    Args:
        pattern: unstructured, N:M such as 2:4 (N of every M inputs stay), or RxC such as 4x1
            (blocks of R outputs and C inputs)
        amount: share of the weights to set to zero; default 0.5. N:M patterns have their own.
        criterion: magnitude; wanda, magnitude times the size of the input; obs, second order with
            all layers re-fitted. Default obs with samples, else magnitude.
        threshold: layer, every layer loses the same share; global, one threshold for the model.
        store: dense, or sparse, as sparse_initializer where that makes the file smaller
        include: name patterns of nodes or weights; only layers that match one are made sparse
        exclude: name patterns of nodes or weights; layers that match one stay dense
        samples: calibration samples.
        runtime: onnxruntime providers and threads.
        seed: of randomly generated inputs, and of the rows that are drawn.
        progress: progress callback of long loops.

    Attributes:
        details: share of zeros of all layers together and of each; filled by the call.

    Raises:
        InputError: for options that do not go together.
    """

    wants_latency = True

    def __init__(
        self,
        pattern: str = "unstructured",
        amount: float | None = None,
        criterion: Literal["magnitude", "wanda", "obs"] | None = None,
        threshold: Literal["layer", "global"] = "layer",
        store: Literal["dense", "sparse"] = "dense",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        seed: int = 0,
        progress: Progress[Any] = silent,
    ) -> None:
        super().__init__()
        self.pattern = parse_pattern(pattern)
        self.criterion = criterion or ("magnitude" if samples is None else "obs")
        self.threshold = threshold
        self.store = store
        self.include = include
        self.exclude = exclude
        self.context = RunContext(samples, None, runtime or Runtime(), seed, progress)
        own = self.pattern.amount
        if own is not None and amount is not None:
            raise InputError(f"the pattern {pattern} sets {own:.0%} to zero; leave amount out")
        if own is not None and threshold == "global":
            raise InputError(f"the pattern {pattern} leaves no choice to a global threshold")
        self.amount = own if own is not None else 0.5 if amount is None else amount
        if not 0 < self.amount < 1:
            raise InputError(f"amount is a share between 0 and 1, not {amount}")
        if self.criterion != "magnitude" and samples is None:
            raise InputError(f"the criterion {self.criterion} needs activations; give samples")

    def remark(self, latency: Latency | None) -> str:
        """Whether the model has become faster, with the measured figure."""
        measured = ""
        if latency is not None and latency.reliable:
            low, high = latency.interval
            measured = (
                f": a run takes {latency.ratio:.1%} of the time it took before "
                f"(between {low:.1%} and {high:.1%})"
            )
        return (
            f"{self.details.get('zeros', 0.0):.1%} of the weights in {len(self.details['layers'])} "
            "layers are zero; dense onnxruntime does not run faster on zeros, it multiplies by "
            f"them as by any other number{measured}"
        )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set weights of the model to zero.

        Raises:
            InputError: when no weight may be set to zero.
        """
        context = self.context
        target = EditableModel(model, trace(model, observe_model(model, context)))
        layers = list(filter(self._may_lose, replaceable_layers(model, target.coupling)))
        if not layers:
            raise InputError(
                "no weight can be set to zero: no Conv, ConvTranspose, Gemm, MatMul or Einsum that "
                "include and exclude leave reads a float constant of its own (one behind a "
                "Transpose is none: fold constants first)"
            )
        names = [layer.node.outputs[0].name or "" for layer in layers]
        with matrix_threads(context.runtime.threads):
            feeds: Sequence[Mapping[str, NDArray[Any]]] = ()
            moments: Sequence[InputMoments | None] = [None] * len(layers)
            if context.samples is not None:
                first = target.coupling.facts.first
                feeds = load_held_batches(context.samples, model, first)
                held = feeds[: BatchBudget(model.graph, first, feeds, 1).at_start]
                moments = input_moments(model, layers, held, context)
            amounts = self._amounts(target, layers, moments)
            solved: set[str] = set()
            if self.criterion == "obs":
                zeros = ZerosOnceSolved(dict(zip(names, amounts, strict=True)), self.pattern)
                fitting = LeastSquares(target, model.clone(), feeds, context, weight_hook=zeros)
                solved = fitting.fit().solved
            for layer, name, share, seen in zip(layers, names, amounts, moments, strict=True):
                if name not in solved:
                    self._set_to_zero(target, layer, share, seen)
        self._account(target, layers, names)
        return ir.passes.PassResult(model, modified=True)

    def _may_lose(self, layer: LinearLayer) -> bool:
        """Whether patterns leave a layer, and it is no depthwise convolution."""
        groups, outputs, _ = layer.shape
        names = (layer.node.name or "", layer.weight)
        return is_selected(names, self.include, self.exclude) and not (groups > 1 and outputs == 1)

    def _amounts(
        self,
        target: EditableModel,
        layers: Sequence[LinearLayer],
        moments: Sequence[InputMoments | None],
    ) -> list[float]:
        if self.threshold == "layer":
            return [self.amount] * len(layers)
        scores = []
        for layer, seen in zip(layers, moments, strict=True):
            weight = _weight(target, layer)
            compared = seen is not None and self.criterion != "magnitude"
            score = shares_of_output(weight, seen) if compared and seen else np.abs(weight)
            scores.append(_stacked(layer, score))
        return layer_amounts(scores, self.pattern, self.amount)

    def _set_to_zero(
        self, target: EditableModel, layer: LinearLayer, amount: float, seen: InputMoments | None
    ) -> None:
        """By scores alone; the mean of what the weights added goes into the bias."""
        weight = _weight(target, layer)
        scores = weight_scores(weight, seen if self.criterion != "magnitude" else None)
        stays = np.empty(weight.shape, bool)
        chosen = self.pattern.mask(_stacked(layer, scores), amount)
        stays[:, :, input_order(layer)] = chosen.reshape(weight.shape)
        kind = target.coupling.facts.constants.get(layer.weight)
        dtype = kind.dtype.numpy() if kind is not None else np.dtype(np.float32)
        target.set_weight(layer.node, layer.slot, layer.tensor(weight * stays).astype(dtype))
        if seen is not None:
            lost = np.einsum("god,gd->go", weight * ~stays, seen.mean)
            if np.any(lost):
                target.add_to_output(layer.node, layer.bias_along_output(lost), dtype)

    def _account(
        self, target: EditableModel, layers: Sequence[LinearLayer], names: Sequence[str]
    ) -> None:
        """Count zeros, and mark weights that are stored without them."""
        shares, zeros, entries = {}, 0, 0
        for layer, name in zip(layers, names, strict=True):
            value = layer.node.inputs[layer.slot]
            assert value is not None
            if self.store == "sparse" and value.is_initializer():
                mark_sparse(value)
            weight = _weight(target, layer)
            count = weight.size - int(np.count_nonzero(weight))
            shares[name] = count / weight.size
            zeros, entries = zeros + count, entries + weight.size
        stored = [value.name for value in sparse_values(target.model)]
        listed = len(listed_initializers(target.model).keys() & {layer.weight for layer in layers})
        if self.store == "sparse" and listed:
            which = "1 weight is an input" if listed == 1 else f"{listed} weights are inputs"
            self.notes = (f"{which} too, which keeps zeros in the file",)
        self.details = {"zeros": zeros / entries, "layers": shares, "stored_sparse": stored}


def _weight(target: EditableModel, layer: LinearLayer) -> NDArray[np.float64]:
    """Weights [g, O, D] as they are now."""
    value = layer.node.inputs[layer.slot]
    assert value is not None
    constants = ConstantValues(target.model, target.coupling.facts.constants)
    return layer.matrix(np.asarray(constants[value.name or ""]))


def _stacked(layer: LinearLayer, array: NDArray[np.float64]) -> NDArray[np.float64]:
    """An array [g, O, D] as one matrix [g * O, D], columns in the order of patterns."""
    return array[:, :, input_order(layer)].reshape(-1, array.shape[2])
