"""The shapes of a model that a pass is given, on samples or on made-up inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.model.observe import observe

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.calibration.samples import Samples
    from onnxprune.model.observe import Facts
    from onnxprune.model.runtime import Runtime

__all__ = ["observed"]

_ROWS = 2


def observed(model: ir.Model, runtime: Runtime, seed: int, samples: Samples | None) -> Facts:
    """Run a model at two sizes and note its shapes.

    Raises:
        InputError: when it does not run.
    """
    sample = samples.take(_ROWS) if samples is not None else None
    try:
        return observe(model, runtime, np.random.default_rng(seed), sample)
    except RuntimeFailure as error:
        where = "the model does not run" + (" on the samples" if samples is not None else "")
        raise InputError(f"{where}: {error}") from error
