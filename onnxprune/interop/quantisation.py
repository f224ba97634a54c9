"""Quantisation by onnxruntime.quantization: a model in, a model of 8-bit weights out.

onnxruntime works on files and prints advice; here it works in a folder of its own, silently.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx

from onnxprune.errors import InputError
from onnxprune.model.load import convert, load

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.calibration.feeds import Feed
    from onnxprune.calibration.samples import Samples

__all__ = ["CalibrationMethod", "Precision", "is_quantised"]
__all__ += ["quantise_dynamic", "quantise_static"]

CalibrationMethod = Literal["minmax", "entropy", "percentile"]

_BATCH = 32
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"}
    | {"QLinearMatMul", "MatMulInteger", "ConvInteger", "MatMulNBits"}
)
_INPUT, _PREPARED, _RESULT = "model.onnx", "prepared.onnx", "quantised.onnx"


def is_quantised(model: ir.Model) -> bool:
    """Whether a model computes with integers somewhere already."""
    return any(node.op_type in _QUANTISED for node in model.graph.all_nodes())


@dataclass(frozen=True)
class Precision:
    """How weights are rounded.

    Attributes:
        per_channel: one scale for every output channel of a weight.
        reduce_range: weights of 7 bits, for CPUs whose 8-bit products saturate.
        exclude: name patterns of nodes that stay as they are.
    """

    per_channel: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()


def quantise_static(
    model: ir.Model, samples: Samples, precision: Precision, method: CalibrationMethod = "minmax"
) -> ir.Model:
    """Quantise weights and activations, with QuantizeLinear and DequantizeLinear around each node.

    Args:
        model: unchanged.
        samples: the ranges of activations come from these.
        precision: how weights are rounded.
        method: how the range of an activation follows from what was seen.

    Raises:
        InputError: when onnxruntime cannot quantise the model.
    """
    from onnxruntime import quantization

    def work(source: Path, target: Path, left: list[str]) -> None:
        quantization.quantize_static(
            source,
            target,
            _Reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=precision.per_channel,
            reduce_range=precision.reduce_range,
            calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[method]),
            nodes_to_exclude=left,
        )

    return _quantised(model, precision, work)


def quantise_dynamic(model: ir.Model, precision: Precision) -> ir.Model:
    """Quantise weights; the ranges of activations are measured at every run.

    Args:
        model: unchanged.
        precision: how weights are rounded.

    Raises:
        InputError: when onnxruntime cannot quantise the model.
    """
    from onnxruntime import quantization

    def work(source: Path, target: Path, left: list[str]) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            weight_type=quantization.QuantType.QInt8,
            per_channel=precision.per_channel,
            reduce_range=precision.reduce_range,
            nodes_to_exclude=left,
        )

    return _quantised(model, precision, work)


class _Reader:
    """Samples as onnxruntime reads them."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.rewind()

    def get_next(self) -> Feed | None:
        """The next feed; None when there are no more."""
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Begin anew."""
        self._feeds: Iterator[Feed] = self._samples.batches(_BATCH)


def _quantised(
    model: ir.Model, precision: Precision, work: Callable[[Path, Path, list[str]], None]
) -> ir.Model:
    from onnxruntime.quantization import shape_inference

    left = _named_nodes(model, precision.exclude)
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantise-") as name, _silent():
        folder = Path(name)
        try:
            proto = convert(model, "proto")
            assert isinstance(proto, onnx.ModelProto)
            # what is declared of weights goes out of date when onnxruntime transposes them
            del proto.graph.value_info[:]
            onnx.save(proto, folder / _INPUT)
            shape_inference.quant_pre_process(
                str(folder / _INPUT), str(folder / _PREPARED), skip_symbolic_shape=True
            )
            work(folder / _PREPARED, folder / _RESULT, left)
            proto = onnx.load(folder / _RESULT)
        except Exception as error:  # onnxruntime.quantization raises whatever comes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"onnxruntime cannot quantise the model: {reason}") from error
    return load(proto).model


def _named_nodes(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that match, and what onnxruntime calls the products it makes of a Gemm.

    Raises:
        InputError: when a pattern matches none.
    """
    names = [node.name for node in model.graph if node.name]
    found = []
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise InputError(f"the pattern {pattern!r} matches no node of the model")
        found += matching
    return [*found, *(f"{name}_MatMul" for name in found)]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep to itself what onnxruntime.quantization logs and prints."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
