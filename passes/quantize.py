"""Quantize: 8-bit weights, and activations where samples say in which range they lie.

Formula, for a tensor x of range [l, h] with scale s and zero point z::

    s = (h - l) / 255        q = round(x / s) + z        x ~ s (q - z)

one s for each output channel of a weight (symmetric, int8), one for each activation (uint8).

Before::

    x -> Conv(W float [64,3,3,3], b) -> y

After (static)::

    x -> QuantizeLinear -> DequantizeLinear -> Conv(DequantizeLinear(W int8), b) -> Quantize...

which onnxruntime runs as one integer convolution.

* static: ranges from the calibration samples; for convolutional networks.
* dynamic: weights only, ranges measured at every run; for transformers and recurrent networks.
* operators: all that onnxruntime supports, so that integers pass from one layer to the next; or
  linear ones alone, where sums, masks or normalisations spoil the range of an activation. In static
  mode the choice is measured: all of them, unless the outputs on held-out samples then diverge by
  more than 0.01 and by more than twice as much as with linear ones alone. With labels or a metric:
  unless they then lose more quality than with linear ones alone.
* A QDQ graph can be pruned again: quantised weights are cut with their scales and zero points.
* onnxruntime's integer convolutions take as long for 63 channels as for 96: make widths multiples
  of 4, better of 16, before this pass (`prune` with `round_to`). The time of matrix products is
  proportional to their width.

Conditions: a float model, half precision included; one that computes with integers already is
refused. Where onnxruntime finds nothing to quantise, the model stays as it is. Below opset 13 there
is one scale for a whole weight in static mode.

Source: onnxruntime.quantization does the work; Jacob et al. 2018 for the scheme.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from onnxprune.calibration.batches import first_batches
from onnxprune.calibration.feeds import Feed
from onnxprune.calibration.labels import read_labels
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.latency.measure import Latency
from onnxprune.errors import CalibrationError, InputError, first_line
from onnxprune.model.inputs import list_as_in, without_listed
from onnxprune.model.load import convert, load
from onnxprune.model.observe import constant_array
from onnxprune.model.protobuf import LARGEST_MESSAGE
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import model_bytes
from onnxprune.model.tensors import initializers
from onnxprune.passes.pipeline.protocol import Pass
from onnxprune.passes.pipeline.quality import PipelineQuality
from onnxprune.verification.divergence import DivergenceEvaluator
from onnxprune.verification.metrics import read_metric
from onnxprune.verification.quality import QualityMeasure

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
_INTEGER_OPS = ("Quantize", "QLinear", "Integer", "QGemm", "NBits", "QAttention")
"""Parts of the names of operators that make or take integers of a quantised model."""

_STEP = 4
"""Channels that integer convolutions of onnxruntime compute together (measured, AVX-512 VNNI)."""

_CALIBRATION_BATCH = 32
_HELD_OUT_BATCHES = 4
_NEGLIGIBLE = 0.01
"""Divergence of the outputs up to which all operators are quantised."""

_AXIS_SINCE = 13
"""Operator set in which DequantizeLinear has got an axis."""

_HALF_SINCE = 19
"""Operator set in which QuantizeLinear takes half precision."""

_FATAL, _WARNING = 4, 2
"""Severities of onnxruntime's logger."""

_LARGE = LARGEST_MESSAGE // 2
_INPUT, _PREPARED, _RESULT = "model.onnx", "prepared.onnx", "quantised.onnx"


class Quantize(Pass, ir.passes.FunctionalPass):
    """Make weights 8-bit integers, and with samples activations too, by onnxruntime.

    Args:
        mode: static, with ranges from the samples, or dynamic, with ranges measured at every
            run. Default static with samples, else dynamic.
        per_channel: one scale for every output channel of a weight
        reduce_range: weights of 7 bits, for CPUs without VNNI whose 8-bit products saturate
        method: how the range of an activation follows from the samples, in static mode: minmax,
            entropy or percentile
        operators: what is quantised: all that onnxruntime supports, linear for convolutions and
            matrix products alone, or auto: in static mode the better of both as measured, else all
        exclude: name patterns of nodes that stay in floating point
        labels: one label for each sample, as for prune: operators are then chosen by accuracy,
            which the details give
        metric: what operators are chosen by and the details give, as for prune
        samples: calibration samples.
        runtime: onnxruntime providers and threads.
        quality: what the pipeline is asked of quality, for choosing operators without labels and
            metric; None for nothing.

    Attributes:
        details: the mode and operators that were used, how many nodes compute on integers or
            carry 8-bit weights to others, and how far the outputs diverge with either choice of
            operators, where both were tried; the quality, where labels or a metric say what it is.
        prefers: options that passes before this one should be run with. Integer convolutions of
            widths that are no multiple of 4 take 1.5 to 2 times as long as of the next multiple.

    Raises:
        InputError: for the static mode, labels or a metric without samples, or a metric that is
            unknown.
    """

    wants_latency = True

    def __init__(
        self,
        mode: Literal["static", "dynamic"] | None = None,
        per_channel: bool = True,
        reduce_range: bool = False,
        method: Literal["minmax", "entropy", "percentile"] = "minmax",
        operators: Literal["auto", "all", "linear"] = "auto",
        exclude: Sequence[str] = (),
        labels: Any = None,
        metric: str | Callable[..., Any] | None = None,
        samples: Samples | None = None,
        runtime: Runtime | None = None,
        quality: PipelineQuality | None = None,
    ) -> None:
        super().__init__()
        self.labels, self.metric = labels, read_metric(metric)
        self._shared, self._measured = quality, samples
        if samples is None and (labels is not None or metric is not None):
            raise InputError("labels and metrics need outputs on samples; give --calibration")
        self.mode = mode or ("dynamic" if samples is None else "static")
        if self.mode == "static" and samples is None:
            raise InputError("static quantisation needs samples; give calibration, or mode dynamic")
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.method = method
        self.operators = operators
        self.exclude = exclude
        self.samples = samples if self.mode == "static" else None
        self.runtime = runtime or Runtime()
        self._unaligned = False
        self.details = {"mode": self.mode}
        self.prefers = {"round_to": _STEP} if self.mode == "static" else {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantise.

        Raises:
            InputError: when the model is quantised already, or onnxruntime cannot do it.
        """
        if _count_quantised(model):
            raise InputError("the model is quantised already; quantise the float model instead")
        operators: str = "all" if self.operators == "auto" else self.operators
        if self.operators == "auto" and self.samples is not None:
            operators = self._better_operators(model, self.samples)
        result = self._quantised(model, operators, self.samples)
        if self._measured is not None and self._asks:
            measure = self._quality_measure(model, self._measured, held_out=False)
            self.details["quality"] = measure.of(result).to_dict()
        self.details |= {"operators": operators, "nodes": _count_quantised(result)}
        self._unaligned = _has_unaligned_convolutions(model)
        if not self.details["nodes"]:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(result, modified=True)

    def remark(self, latency: Latency | None) -> str:
        """Whether the model has become faster, with the measured figure."""
        if not self.details.get("nodes"):
            return "onnxruntime found nothing to quantise; the model is as it was"
        if latency is None:
            return ""
        if not latency.reliable:
            return (
                f"whether {self.mode} quantisation makes this model faster cannot be told: the "
                "machine is busy; it is smaller"
            )
        low, high = latency.interval
        figure = (
            f"a run takes {latency.ratio:.1%} of the time it took before (between {low:.1%} and "
            f"{high:.1%})"
        )
        if high < 1:
            return f"{self.mode} quantisation makes this model faster: {figure}"
        remedy = ""
        if self._unaligned:
            remedy = ". Convolutions need widths that are multiples of 4 or 16 (round_to of prune)"
        return (
            f"{self.mode} quantisation does not make this model faster here: {figure}; it is "
            f"smaller{remedy}"
        )

    def _better_operators(self, model: ir.Model, samples: Samples) -> str:
        """Which operators to quantise, measured on samples that set no range."""
        try:
            ranges, held = divide(samples)
        except CalibrationError:  # too few to tell
            return "all"
        if self._asks or (self._shared is not None and self._shared.measure is not None):
            return self._operators_by_quality(model, ranges, held)
        feeds = first_batches(held, _HELD_OUT_BATCHES)
        evaluator = DivergenceEvaluator(model, feeds, self.runtime)
        divergences = {}
        for operators in ("all", "linear"):
            quantised = self._quantised(model, operators, ranges)
            divergences[operators] = evaluator.divergence(quantised)
            if divergences["all"] <= _NEGLIGIBLE:
                break
        self.details["divergence"] = divergences
        limit = max(_NEGLIGIBLE, 2 * divergences.get("linear", 0.0))
        return "all" if divergences["all"] <= limit else "linear"

    @property
    def _asks(self) -> bool:
        """Whether labels or a metric of its own say what quality is."""
        return self.labels is not None or self.metric is not None

    def _operators_by_quality(self, model: ir.Model, ranges: Samples, held: Samples) -> str:
        """All operators, unless linear ones alone lose less quality."""
        measure = self._shared.measure if self._shared is not None else None
        if measure is None or self._asks:
            measure = self._quality_measure(model, held, held_out=True)
        drops = {
            operators: measure.of(self._quantised(model, operators, ranges)).drop
            for operators in ("all", "linear")
        }
        self.details["drop"] = drops
        return "all" if drops["all"] <= drops["linear"] else "linear"

    def _quality_measure(
        self, model: ir.Model, samples: Samples, *, held_out: bool
    ) -> QualityMeasure:
        assert self._measured is not None
        labels = None if self.labels is None else read_labels(self.labels, self._measured)
        return QualityMeasure(
            model, samples, self.runtime, labels=labels, metric=self.metric, held_out=held_out
        )

    def _quantised(self, model: ir.Model, operators: str, samples: Samples | None) -> ir.Model:
        """A quantised copy: statically with samples, else dynamically."""
        static, opset = samples is not None, model.graph.opset_imports.get("", 0)
        _require_float(model, opset, since=_HALF_SINCE if static else None)
        settings: dict[str, Any] = {
            "weight_type": quantization.QuantType.QInt8,
            "per_channel": self.per_channel and (not static or opset >= _AXIS_SINCE),
            "reduce_range": self.reduce_range,
            "op_types_to_quantize": list(_LINEAR) if operators == "linear" else None,
            "nodes_to_exclude": _excluded_nodes(model, self.exclude),
            "use_external_data_format": _is_large(model),
            # of tensors whose type is not declared, as those inside fused operators
            "extra_options": {"DefaultTensorType": int(_float_type(model))},
        }
        if samples is not None:
            _require_tensors(model)
            settings |= {
                "calibration_data_reader": _Reader(samples, one_shape=self.method != "minmax"),
                "quant_format": quantization.QuantFormat.QDQ,
                "activation_type": quantization.QuantType.QUInt8,
                "calibrate_method": quantization.CalibrationMethod[_METHODS[self.method]],
            }
        return _run_onnxruntime(model, settings)


class _Reader:
    """Samples as onnxruntime reads them.

    Args:
        samples: calibration samples.
        one_shape: leave out batches of another shape than the first; histograms need this.
    """

    def __init__(self, samples: Samples, *, one_shape: bool) -> None:
        self._samples = samples
        self._one_shape = one_shape
        self.rewind()

    def get_next(self) -> Feed | None:
        """The next feed; None when there are no more."""
        return next(self._feeds, None)

    def rewind(self) -> None:
        """Start again from the first feed."""
        self._feeds: Iterator[Feed] = self._selected()

    def _selected(self) -> Iterator[Feed]:
        first: dict[str, tuple[int, ...]] = {}
        for feed in self._samples.batches(_CALIBRATION_BATCH):
            shapes = {name: array.shape for name, array in feed.items()}
            first = first or shapes
            if shapes == first or not self._one_shape:
                yield feed


def _run_onnxruntime(model: ir.Model, settings: dict[str, Any]) -> ir.Model:
    """Quantise a copy of a model in a temporary folder.

    Args:
        model: unchanged.
        settings: arguments of `quantize_static` if they name a reader, else of `quantize_dynamic`.

    Raises:
        InputError: when onnxruntime cannot quantise the model.
    """
    static = "calibration_data_reader" in settings
    quantise = quantization.quantize_static if static else quantization.quantize_dynamic
    large = settings["use_external_data_format"]
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantise-") as name, _silent():
        folder = Path(name)
        try:
            proto = convert(without_listed(model), "proto")
            assert isinstance(proto, onnx.ModelProto)
            _clear_inferred_shapes(proto.graph)
            _store(proto, folder / _INPUT, large)
            shape_inference.quant_pre_process(
                str(folder / _INPUT),
                str(folder / _PREPARED),
                # casts that it puts around half precision hide weights
                skip_optimization=_float_type(model) != ir.DataType.FLOAT,
                skip_symbolic_shape=True,
                save_as_external_data=large,
                external_data_location=_PREPARED + ".data",
            )
            prepared = onnx.load(folder / _PREPARED)
            _flatten_biases(prepared.graph)
            _store(prepared, folder / _PREPARED, large)
            quantise(folder / _PREPARED, folder / _RESULT, **settings)
            proto = onnx.load(folder / _RESULT)
        except Exception as error:  # onnxruntime.quantization raises all kinds of exceptions
            reason = first_line(error)
            raise InputError(
                f"onnxruntime cannot quantise the model: {reason}; "
                "try the other mode or method minmax, or exclude the node"
            ) from error
    result = load(proto).model
    RemoveUnusedNodesPass()(result)
    _copy_declarations(model, result)
    list_as_in(model, result)
    return result


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress what onnxruntime and onnxruntime.quantization log and print.

    The sessions that onnxruntime.quantization opens take the severity of the default logger, which
    is back at the warnings of onnxruntime's default afterwards: it cannot be asked.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(_FATAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        ort.set_default_logger_severity(_WARNING)
        logging.disable(level)


def _clear_inferred_shapes(graph: onnx.GraphProto) -> None:
    """Keep the declared types only: shapes go stale when onnxruntime transposes and fuses."""
    for value in graph.value_info:
        value.type.tensor_type.ClearField("shape")
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _flatten_biases(graph: onnx.GraphProto) -> None:
    """Give every Gemm a bias of one axis; onnxruntime does not quantise those of none or two."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or not {*node.input[1:]} <= constants.keys():
            continue
        weight, *biases = (constants[name] for name in node.input[1:])
        transposed = any(item.name == "transB" and item.i for item in node.attribute)
        outputs = weight.dims[0 if transposed else 1]
        for bias in biases:
            if len(bias.dims) != 1 and prod(bias.dims) in (1, outputs):
                flat = np.broadcast_to(numpy_helper.to_array(bias).reshape(-1), (outputs,))
                node.input[2] = f"{node.output[0]}_bias"
                graph.initializer.append(numpy_helper.from_array(flat.copy(), node.input[2]))


def _store(proto: onnx.ModelProto, path: Path, large: bool) -> None:
    data = path.name + ".data"
    (path.parent / data).unlink(missing_ok=True)  # onnx would append to it
    onnx.save(proto, path, save_as_external_data=large, location=data)


def _copy_declarations(model: ir.Model, result: ir.Model) -> None:
    """Declare inputs and outputs as in the model; onnxruntime writes the sizes that it infers."""
    for values, results in (
        (model.graph.inputs, result.graph.inputs),
        (model.graph.outputs, result.graph.outputs),
    ):
        declared = {value.name: value for value in values}
        for value in results:
            if value.name in declared:
                value.type, value.shape = declared[value.name].type, declared[value.name].shape


def _require_tensors(model: ir.Model) -> None:
    for value in model.graph.outputs:
        if not isinstance(value.type, ir.TensorType):
            raise InputError(
                f"static quantisation needs tensors as outputs, and {value.name!r} is none; "
                "use mode dynamic, or export the model without this output"
            )


def _require_float(model: ir.Model, opset: int, since: int | None) -> None:
    """Refuse weights that are not float32, below the opset since which they can be quantised."""
    kind = _float_type(model)
    if kind != ir.DataType.FLOAT and (since is None or opset < since):
        condition = f" below opset {since}" if since is not None else " in dynamic mode"
        raise InputError(
            f"onnxruntime does not quantise weights of {kind.name}{condition}; quantise the "
            "float32 model that this one was made from"
        )


def _float_type(model: ir.Model) -> ir.DataType:
    """The type of most of the weights."""
    sizes: dict[ir.DataType, int] = {ir.DataType.FLOAT: 0}
    for value in initializers(model):
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            kind = value.const_value.dtype
            sizes[kind] = sizes.get(kind, 0) + value.const_value.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _is_large(model: ir.Model) -> bool:
    """Whether a file needs external data."""
    return model_bytes(model) > _LARGE


def _count_quantised(model: ir.Model) -> int:
    """Number of nodes that make or take integers of a quantised model."""
    nodes = model.graph.all_nodes()
    return sum(any(part in node.op_type for part in _INTEGER_OPS) for node in nodes)


def _has_unaligned_convolutions(model: ir.Model) -> bool:
    """Whether a convolution that is not depthwise has a width that kernels round up."""
    weights = [
        (constant_array(node.inputs[1]), node.attributes.get_int("group", 1))
        for node in model.graph.all_nodes()
        if node.op_type == "Conv"
    ]
    return any(
        width % _STEP
        for weight, groups in weights
        if weight is not None and groups == 1
        for width in weight.shape[:2]
    )


def _excluded_nodes(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that stay in floating point.

    Those that match, and the standard Attention, which onnxruntime takes for the operator of the
    same name in its own domain. The product that it makes of a Gemm has another name.

    Raises:
        InputError: when a pattern matches none.
    """
    names = [node.name for node in model.graph if node.name]
    excluded = []
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise InputError(f"the pattern {pattern!r} matches no node of the model")
        excluded += matching
    excluded += [
        node.name
        for node in model.graph
        if node.op_identifier()[:2] == ("", "Attention") and node.name
    ]
    return [*excluded, *(f"{name}_MatMul" for name in excluded)]
