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
* operators: all that onnxruntime can, so that integers go from one layer to the next; or linear
  ones alone, where sums, masks or normalisations spoil the range of an activation. Which, is
  measured in static mode: all of them, unless the outputs on samples that set no range then
  diverge by more than 0.01, and by more than twice as much.
* A QDQ graph can be pruned again: quantised weights are cut with their scales and zero points.

* onnxruntime's integer convolutions take as long for 63 channels as for 96: widths are to be
  multiples of 4, better of 16, before this pass (`prune` with `round_to`). Matrix products take
  what they have to at any width.

Conditions: a float model, of half precision too; one that computes with integers already is
refused. Where onnxruntime finds nothing to quantise, the model stays as it is. Below opset 13 one
scale counts for a whole weight in static mode.

Source: onnxruntime.quantization does the work; Jacob et al. 2018 for the scheme.
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
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.calibration.feeds import Feed
from onnxprune.calibration.moments import BATCH
from onnxprune.calibration.streams import Samples, divide
from onnxprune.cost.latency.measure import Latency
from onnxprune.errors import CalibrationError, InputError
from onnxprune.model.execution import Execution
from onnxprune.model.load import convert, load
from onnxprune.model.protobuf import LARGEST_MESSAGE
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import model_bytes
from onnxprune.model.tensors import initializers
from onnxprune.verification.divergence import divergence

CalibrationMethod = Literal["minmax", "entropy", "percentile"]

_BATCH = 32
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
_QUANTISED = ("Quantize", "QLinear", "Integer", "QGemm", "NBits", "QAttention")
_STANDARD_ATTENTION = ("", "Attention")
_AXIS_SINCE = 13
_HALF_SINCE = 19
_LARGE = LARGEST_MESSAGE // 2
_INPUT, _PREPARED, _RESULT = "model.onnx", "prepared.onnx", "quantised.onnx"


def is_quantised(model: ir.Model) -> bool:
    """Whether a model computes with integers somewhere already."""
    return count_quantised(model) > 0


def count_quantised(model: ir.Model) -> int:
    """Number of nodes that make or take integers of a quantised model."""
    return sum(_quantises(node) for node in model.graph.all_nodes())


def _quantises(node: ir.Node) -> bool:
    return any(word in node.op_type for word in _QUANTISED)


@dataclass(frozen=True)
class Precision:
    """How weights are rounded.

    Attributes:
        per_channel: one scale for every output channel of a weight; static quantisation has one
            for the whole weight below opset 13, where DequantizeLinear knows no axis.
        reduce_range: weights of 7 bits, for CPUs whose 8-bit products saturate.
        exclude: name patterns of nodes that stay as they are.
        operators: those that are quantised; empty for all that onnxruntime can.
    """

    per_channel: bool = True
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


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
            _Reader(samples, one_shape=method != "minmax"),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=precision.per_channel and _opset(model) >= _AXIS_SINCE,
            reduce_range=precision.reduce_range,
            calibrate_method=getattr(quantization.CalibrationMethod, _METHODS[method]),
            op_types_to_quantize=list(precision.operators) or None,
            nodes_to_exclude=left,
            use_external_data_format=_is_large(model),
            extra_options=_options(model),
        )

    _require_single_precision(model, since=_HALF_SINCE)
    _require_tensors(model)
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
            op_types_to_quantize=list(precision.operators) or None,
            nodes_to_exclude=left,
            use_external_data_format=_is_large(model),
            extra_options=_options(model),
        )

    _require_single_precision(model)
    return _quantised(model, precision, work)


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
        """Begin anew."""
        self._feeds: Iterator[Feed] = self._chosen()

    def _chosen(self) -> Iterator[Feed]:
        first: dict[str, tuple[int, ...]] = {}
        for feed in self._samples.batches(_BATCH):
            shapes = {name: array.shape for name, array in feed.items()}
            first = first or shapes
            if shapes == first or not self._one_shape:
                yield feed


def _quantised(
    model: ir.Model, precision: Precision, work: Callable[[Path, Path, list[str]], None]
) -> ir.Model:
    from onnxruntime.quantization import shape_inference

    left = _named_nodes(model, precision.exclude)
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantise-") as name, _silent():
        folder = Path(name)
        try:
            large = _is_large(model)
            proto = convert(model, "proto")
            assert isinstance(proto, onnx.ModelProto)
            _keep_types_only(proto.graph)
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
            work(folder / _PREPARED, folder / _RESULT, left)
            proto = onnx.load(folder / _RESULT)
        except Exception as error:  # onnxruntime.quantization raises whatever comes
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"onnxruntime cannot quantise the model: {reason}; "
                "try the other mode or method minmax, or exclude the node"
            ) from error
    made = load(proto).model
    RemoveUnusedNodesPass()(made)
    _declare_as(model, made)
    return made


def _require_tensors(model: ir.Model) -> None:
    for value in model.graph.outputs:
        if not isinstance(value.type, ir.TensorType):
            raise InputError(
                f"static quantisation needs tensors as outputs, and {value.name!r} is none; "
                "give mode dynamic, or export the model without it"
            )


def _require_single_precision(model: ir.Model, since: int | None = None) -> None:
    """Refuse weights of other types, below the opset since which they can be quantised."""
    kind = _float_type(model)
    if kind != ir.DataType.FLOAT and (since is None or _opset(model) < since):
        others = f" below opset {since}" if since is not None else " in dynamic mode"
        raise InputError(
            f"onnxruntime does not quantise weights of {kind.name}{others}; quantise the float32 "
            "model that this one was made from"
        )


def _keep_types_only(graph: onnx.GraphProto) -> None:
    """Forget declared shapes, which go out of date when onnxruntime transposes and fuses."""
    for value in graph.value_info:
        value.type.tensor_type.ClearField("shape")
    constants = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _flatten_biases(graph: onnx.GraphProto) -> None:
    """Give every Gemm a bias of one axis; those of none or two onnxruntime does not quantise."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Gemm" or not {*node.input[1:]} <= constants.keys():
            continue
        weight, *biases = (constants[name] for name in node.input[1:])
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
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


def _declare_as(model: ir.Model, made: ir.Model) -> None:
    """Give inputs and outputs the dimensions there were; onnxruntime writes those it infers."""
    for before, after in (
        (model.graph.inputs, made.graph.inputs),
        (model.graph.outputs, made.graph.outputs),
    ):
        declared = {value.name: value for value in before}
        for value in after:
            if value.name in declared:
                value.type, value.shape = declared[value.name].type, declared[value.name].shape


def _float_type(model: ir.Model) -> ir.DataType:
    """The type of most of the weights."""
    sizes: dict[ir.DataType, int] = {ir.DataType.FLOAT: 0}
    for value in initializers(model):
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            kind = value.const_value.dtype
            sizes[kind] = sizes.get(kind, 0) + value.const_value.size
    return max(sizes, key=lambda kind: sizes[kind])


def _options(model: ir.Model) -> dict[str, int]:
    """What tensors are taken for whose type nothing says, as those that fused operators make."""
    return {"DefaultTensorType": int(_float_type(model))}


def _opset(model: ir.Model) -> int:
    return model.graph.opset_imports.get("", 0)


def _is_large(model: ir.Model) -> bool:
    """Whether a file needs external data."""
    return model_bytes(model) > _LARGE


def _named_nodes(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Names of the nodes that stay as they are: those that match, and what onnxruntime mistakes.

    It calls the product that it makes of a Gemm by another name.

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
    # taken for the operator of the same name in onnxruntime's own domain
    found += [
        node.name
        for node in model.graph
        if node.op_identifier()[:2] == _STANDARD_ATTENTION and node.name
    ]
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


_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_JUDGED_BATCHES = 4
_NEGLIGIBLE = 0.01
_STEP = 4
"""Channels that integer convolutions of onnxruntime compute together (measured, AVX-512 VNNI)."""


class Quantize(ir.passes.FunctionalPass):
    """Make weights 8-bit integers, and with samples activations too, by onnxruntime.

    Args:
        mode: static, with ranges from the samples, or dynamic, with ranges measured at every
            run. Default static with samples, else dynamic.
        per_channel: one scale for every output channel of a weight
        reduce_range: weights of 7 bits, for CPUs without VNNI whose 8-bit products saturate
        method: how the range of an activation follows from the samples, in static mode: minmax,
            entropy or percentile
        operators: what is quantised: all that onnxruntime can, linear for convolutions and matrix
            products alone, or auto: in static mode what is measured to be right, else all
        exclude: patterns of the names of nodes that stay as they are
        samples: calibration samples.
        runtime: how to run the model.

    Attributes:
        details: the mode and operators that were taken, how many nodes compute on integers or
            carry 8-bit weights to others, and how far the outputs diverge with either choice of
            operators, where both were tried.
        prefers: what passes before this one had better be run with. Integer convolutions of
            widths that are no multiple of 4 take 1.5 to 2 times as long as of the next above.

    Raises:
        InputError: for the static mode without samples.
    """

    def __init__(
        self,
        mode: Literal["static", "dynamic"] | None = None,
        per_channel: bool = True,
        reduce_range: bool = False,
        method: Literal["minmax", "entropy", "percentile"] = "minmax",
        operators: Literal["auto", "all", "linear"] = "auto",
        exclude: Sequence[str] = (),
        samples: Samples | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode or ("dynamic" if samples is None else "static")
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.method: Literal["minmax", "entropy", "percentile"] = method
        self.operators = operators
        self.exclude = exclude
        self.samples = samples
        self.runtime = runtime or Runtime()
        self.details: dict[str, Any] = {"mode": self.mode}
        self.prefers: dict[str, int] = {"round_to": _STEP} if self.mode == "static" else {}
        if self.mode == "static" and samples is None:
            raise InputError("static quantisation needs samples; give calibration, or mode dynamic")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantise.

        Raises:
            InputError: when the model is quantised already, or onnxruntime cannot do it.
        """
        if is_quantised(model):
            raise InputError("the model is quantised already; quantise the float model instead")
        operators: str = "all" if self.operators == "auto" else self.operators
        if self.mode == "static" and self.operators == "auto" and self.samples is not None:
            operators = self._measured(model, self.samples)
        made = self._made(model, operators, self.samples)
        self.details |= {"operators": operators, "nodes": count_quantised(made)}
        if not self.details["nodes"]:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(made, modified=True)

    def _made(self, model: ir.Model, operators: str, samples: Samples | None) -> ir.Model:
        chosen = _LINEAR if operators == "linear" else ()
        how = Precision(self.per_channel, self.reduce_range, tuple(self.exclude), chosen)
        if self.mode == "static" and samples is not None:
            return quantise_static(model, samples, how, self.method)
        return quantise_dynamic(model, how)

    def _measured(self, model: ir.Model, samples: Samples) -> str:
        """Which operators to quantise, by the outputs on samples that set no range."""
        try:
            ranges, held = divide(samples)
        except CalibrationError:  # too few to tell
            return "all"
        feeds = list(islice(held.batches(BATCH), _JUDGED_BATCHES))
        wanted = Execution(model, self.runtime).run_all(feeds)
        lost = {}
        for operators in ("all", "linear"):
            made = self._made(model, operators, ranges)
            got = Execution(made, self.runtime).run_all(feeds)
            lost[operators] = divergence(model, list(zip(wanted, got, strict=True)))
            if lost["all"] <= _NEGLIGIBLE:
                break
        self.details["divergence"] = lost
        return "all" if lost["all"] <= max(_NEGLIGIBLE, 2 * lost.get("linear", 0.0)) else "linear"

    def remark(self, latency: Latency | None) -> str:
        """What to tell people: whether the model has become faster, with the measured figure."""
        if not self.details.get("nodes"):
            return "onnxruntime found nothing to quantise; the model is as it was"
        if latency is None:
            return ""
        low, high = latency.interval
        figure = (
            f"a run takes {latency.ratio:.1%} of the time it took before (between {low:.1%} and "
            f"{high:.1%})"
        )
        if high < 1:
            return f"{self.mode} quantisation makes this model faster: {figure}"
        return (
            f"{self.mode} quantisation does not make this model faster here: {figure}; it is "
            "smaller. Convolutions want widths that are multiples of 4 or 16 (round_to of prune)"
        )
