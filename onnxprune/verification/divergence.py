"""How far the outputs of a pruned model are from the original's, in one number.

* Class scores - what a Softmax gives or what would go into one - are compared as distributions at
  temperature 2, KL(original || pruned) averaged over samples: at 1 a few samples on which the
  original is over-confident decide.
* Every other float output: mean squared difference over the variance of the original's output.
* What a linear layer gives may be scores or quantities; the second then counts a tenth.

Several outputs are averaged. Source: METHODS.md 4 and 5; Hinton et al. 2015 for the temperature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["divergence"]

_LINEAR = ("Gemm", "MatMul", "Add", "Conv")
_SMALLEST = 1e-12
_TEMPERATURE = 2.0
_AS_QUANTITIES = 0.1


def divergence(
    model: ir.Model, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> float:
    """Average divergence over batches.

    Args:
        model: the original; says what its outputs are made by.
        pairs: outputs of the original and of the pruned model by name, for each batch.

    Returns:
        0 for equal outputs; infinity when the pruned model gives NaN or infinite values.
    """
    found = []
    for value in model.graph.outputs:
        name, producer = value.name or "", value.producer()
        arrays = [(a[name], b[name]) for a, b in pairs if _is_float(a[name])]
        if not arrays:
            continue
        wanted = np.concatenate([a.astype(np.float64).reshape(-1, a.shape[-1]) for a, _ in arrays])
        got = np.concatenate([b.astype(np.float64).reshape(-1, b.shape[-1]) for _, b in arrays])
        if not np.isfinite(got).all():
            return float("inf")
        kind = producer.op_type if producer is not None else ""
        if kind == "Softmax":
            found.append(_kl(np.log(wanted + _SMALLEST), np.log(got + _SMALLEST)))
        elif kind == "LogSoftmax":
            found.append(_kl(wanted, got))
        elif kind in _LINEAR and wanted.shape[1] > 1:
            found.append(_kl(wanted, got) + _AS_QUANTITIES * _relative(wanted, got))
        else:
            found.append(_relative(wanted, got))
    return float(np.mean(found)) if found else 0.0


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind in "fV" and array.ndim > 0


def _kl(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    first, second = (_normalised(scores / _TEMPERATURE) for scores in (wanted, got))
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


def _normalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _relative(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    scale = max(float(wanted.var(axis=0).sum()), _SMALLEST)
    return float(((wanted - got) ** 2).sum(axis=1).mean() / scale)
