"""The student as it is trained: one run gives its loss and the gradients of all weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune.distillation.losses import OF_FEATURES, OF_OUTPUTS, DistillationLoss
from onnxprune.distillation.parameters import left_out, matrices_of, parameters_of, values_of
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
        fixed: names of weights that are not trained.

    Attributes:
        values: of the weights at the start, by name.
        matrices: names of the weights that multiply as matrices.
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
        fixed: Collection[str] = (),
    ) -> None:
        lifted = model.clone()
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(lifted)
        to_single_precision(lifted)
        found = parameters_of(lifted.graph, embeddings=embeddings)
        names = [name for name in found if name not in fixed]
        made = differentiate_weights(lifted, names, loss.emit, sample, runtime, rng)
        self.blocked = {**left_out(lifted.graph), **made.blocked}
        self.values = values_of(lifted, list(made.gradients))
        self.matrices = matrices_of(lifted.graph, self.values)
        self.activation_bytes = made.activation_bytes
        self._gradients = made.gradients
        self._outputs = [value.name or "" for value in model.graph.outputs]
        self._session = open_session(made.model, runtime, memory="unplanned")
        self._fed = {value.name: len(value.shape) for value in self._session.get_inputs()}
        self._returned = {value.name for value in self._session.get_outputs()}

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

    def outputs(self, feed: Mapping[str, NDArray[Any]], values: Values) -> dict[str, Any]:
        """Run forwards only, where the loss was made for labels.

        Args:
            feed: a batch.
            values: of the weights.
        """
        fed = {**single(feed), **values}
        nothing = {
            name: np.zeros((1,) * rank, np.float32)
            for name, rank in self._fed.items()
            if name not in fed
        }
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True
        names = [name for name in self._outputs if name in self._returned]
        return dict(zip(names, self._session.run(names, {**fed, **nothing}, options), strict=True))
