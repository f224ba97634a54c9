"""How the tests fold means: trace, cut, fold, mask, slice, certify, from the plain parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

from helpers.networks import Net
from helpers.oracle import ONE_THREAD, Traced, difference, outputs, traced
from onnxprune.calibration.moments import Moments, Tap, collect
from onnxprune.calibration.samples import read_samples
from onnxprune.compensation.fold_means import fold_means
from onnxprune.coupling.analysis import tap_of
from onnxprune.coupling.cut import Cut
from onnxprune.model.inputs import input_specs
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed, zero_removed

Samples = Mapping[str, NDArray[Any]]


def moments_of(subject: Traced, samples: Samples) -> dict[Tap, Moments]:
    """Statistics at the input of every reader of the model."""
    taps = [tap_of(subject.coupling, one) for group in subject.groups for one in group.readings]
    read = read_samples(samples, input_specs(subject.model))
    return collect(subject.model, taps, read, ONE_THREAD)


def fold(subject: Traced, dead: Sequence[int], samples: Samples) -> tuple[EditableModel, Cut]:
    """The model at full size with the means of the dead classes folded in, and the cut of it."""
    read = read_samples(samples, input_specs(subject.model))
    full = EditableModel(subject.model.clone(), subject.coupling)
    moments = moments_of(subject, samples)
    fold_means(full, subject.cut(list(dead)), moments, [read.take(1)], ONE_THREAD)
    return full, Cut(full.coupling, dead)


def pruned(
    subject: Traced, dead: Sequence[int], samples: Samples, tolerance: float = 1e-5
) -> onnx.ModelProto:
    """Fold and slice; what is sliced has to compute what is masked, and the checker agrees."""
    full, cut = fold(subject, dead, samples)
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    slice_removed(sliced, cut)
    result, wanted = ir.to_proto(sliced), ir.to_proto(masked)
    onnx.checker.check_model(result, full_check=True)
    assert difference(outputs(wanted, samples), outputs(result, samples)) < tolerance
    return result


def network(
    net: Net,
    shape: Sequence[int | str],
    results: Sequence[str],
    dtype: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of the net's nodes from `input` to the given tensors, whose shapes stay open."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        net.nodes,
        "net",
        [value("input", dtype, ["N", *shape])],
        [value(name, dtype, None) for name in results],
        net.initializers,
    )
    imports = [helper.make_opsetid("", net.opset)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8 if net.opset < 19 else 10)
    known = {one.name: one for one in onnx.shape_inference.infer_shapes(proto).graph.output}
    for one in proto.graph.output:
        rank = len(known[one.name].type.tensor_type.shape.dim)
        one.CopyFrom(value(one.name, dtype, [f"{one.name}_{axis}" for axis in range(rank)]))
    return proto


def producer(
    net: Net, width: int, constant: Sequence[int], rank: int = 2, inputs: int = 3
) -> tuple[str, str]:
    """A pointwise convolution of `input` and a Relu; some channels are constant and not zero.

    Returns:
        its output and its weight.
    """
    weight = net.rng.standard_normal((width, inputs, *[1] * rank)).astype(np.float32)
    bias = net.rng.standard_normal(width).astype(np.float32)
    weight[list(constant)] = 0
    bias[list(constant)] = net.rng.uniform(0.5, 2, len(constant))
    name = net.constant(weight)
    return net.op("Relu", net.op("Conv", "input", name, net.constant(bias))), name


def remove_channels(
    proto: onnx.ModelProto,
    weight: str,
    channels: Sequence[int],
    samples: Samples,
    *,
    axis: int = 0,
    tolerance: float = 1e-5,
) -> onnx.ModelProto:
    """Prune output channels of a weight, and nothing else, with mean folding."""
    subject = traced(proto)
    classes = subject.units(weight, axis)
    seeds = [int(classes[one]) for one in channels]
    assert 0 not in seeds, f"{weight} is frozen"
    dead = subject.closed(seeds)
    assert set(classes[list(channels)]) == set(classes) & set(dead), "more channels had to go"
    return pruned(subject, dead, samples, tolerance)
