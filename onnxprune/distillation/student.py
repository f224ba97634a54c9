"""The student as it is trained: one run gives its loss and the gradients of all weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune.distillation.losses import OF_FEATURES, OF_OUTPUTS, DistillationLoss
from onnxprune.distillation.parameters import parameters_of, values_of
from onnxprune.gradients.differentiated import differentiate_weights, single
from onnxprune.gradients.preparation import to_single_precision
from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime

Values = dict[str, NDArray[np.float32]]


class Student:
    """A model whose weights are inputs, with its loss and their gradients as outputs.

    Args:
        model: unchanged.
        loss: against the teacher.
        sample: a feed to observe the model on.
        runtime: how to run.
        rng: for a second feed.
        embeddings: whether tables of embeddings are trained as well.

    Attributes:
        values: of the weights at the start, by name.
        blocked: why weights have no gradient, by name.
        activation_bytes: of all activations of the sample.

    Raises:
        InputError: when fused operators compute something else than what they are made of.
        RuntimeFailure: when onnxruntime refuses the graph.
    """

    def __init__(
        self,
        model: ir.Model,
        loss: DistillationLoss,
        sample: Mapping[str, NDArray[Any]],
        runtime: Runtime,
        rng: np.random.Generator,
        *,
        embeddings: bool = False,
    ) -> None:
        lifted = model.clone()
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(lifted)
        to_single_precision(lifted)
        names = parameters_of(lifted.graph, embeddings=embeddings)
        made = differentiate_weights(lifted, names, loss.emit, sample, runtime, rng)
        self.blocked: dict[str, str] = dict(made.blocked)
        self.values = values_of(lifted, list(made.gradients))
        self.activation_bytes = made.activation_bytes
        self._gradients = made.gradients
        self._session = open_session(made.model, runtime, memory="unplanned")

    def gradients(
        self,
        feed: Mapping[str, NDArray[Any]],
        targets: Mapping[str, NDArray[np.float32]],
        values: Values,
    ) -> tuple[float, float, Values]:
        """Run forwards and backwards.

        Args:
            feed: a batch.
            targets: what the loss reads, from `DistillationLoss.feed`.
            values: of the weights.

        Returns:
            loss of the outputs and of the features, and gradients of the weights, by name.
        """
        results = run(self._session, {**single(feed), **targets, **values})
        gradients = {name: results[output] for name, output in self._gradients.items()}
        return float(results[OF_OUTPUTS]), float(results[OF_FEATURES]), gradients
