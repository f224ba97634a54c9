"""What constant channels gave a zero-padded convolution is given back, border included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import Traced, difference, outputs, parse, traced
from numpy.typing import NDArray

from onnxprune.coupling.cut import Cut
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.linear import add_border_exact_constant, apply_linear, axes_of_weight
from onnxprune.surgery.slicing import slice_removed, zero_removed

LEVELS = {1: 1.5, 4: -0.5}
"""Constant values of two of the six channels the reader sees."""

READERS = {
    "plain": "Conv<pads = [1, 1, 1, 1]>",
    "uneven": "Conv<pads = [0, 2, 1, 0], strides = [2, 1]>",
    "dilated": "Conv<pads = [2, 2, 2, 2], dilations = [2, 2]>",
    "upper": 'Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>',
    "lower": 'Conv<auto_pad = "SAME_LOWER">',
    "grouped": "Conv<group = 2, pads = [1, 1, 1, 1]>",
    "transposed": "ConvTranspose<pads = [1, 0, 0, 1], strides = [2, 2], output_padding = [1, 1]>",
    "transposed, grouped": "ConvTranspose<group = 3>",
}


def network(reader: str, size: str, dtype: str = "float") -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({dtype}[N, 3, {size}] x) => ({dtype}[N, 6, a, b] z)
        {{ h = Conv(x, w1) y = {reader}(h, w2) z = Conv(y, w3) }}"""
    rng = np.random.default_rng(0)
    group = int(reader.partition("group = ")[2][:1] or 1)
    kernel = (6, 6 // group, 3, 3)
    kind = np.float16 if dtype == "float16" else np.float32
    shapes = {"w1": (6, 3, 1, 1), "w2": kernel, "w3": (6, 6, 1, 1)}
    return parse(text, {n: rng.standard_normal(s).astype(kind) for n, s in shapes.items()})


def constants(size: tuple[int, int]) -> NDArray[np.float64]:
    """The reader's input with nothing but the constant channels."""
    values = np.zeros((1, 6, *size))
    for channel, level in LEVELS.items():
        values[:, channel] = level
    return values


def given_back(subject: Traced, size: tuple[int, int], uniform: bool = True) -> EditableModel:
    full = EditableModel(subject.model.clone(), subject.coupling)
    node = full.nodes["y"]
    weight = subject.coupling.facts.constants["w2"].numpy()
    values = constants(size)
    contribution = apply_linear(node, 17, values, weight, 1)
    own = axes_of_weight(node, 1, weight.shape, 4)
    add_border_exact_constant(full, node, values, uniform, contribution, weight, own)
    return full


def contribution(proto: onnx.ModelProto, size: tuple[int, int]) -> NDArray[Any]:
    """What the output owes to the constants: the rest of the network is linear, without bias."""
    tail = onnx.ModelProto()
    tail.CopyFrom(proto)
    del tail.graph.node[0]
    tail.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 6, *size])
    )
    return outputs(tail, {"h": constants(size).astype(np.float32)})["z"]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("size", ["5, 6", "H, W"])
def test_the_border_is_exact_at_every_size(name: str, size: str) -> None:
    proto = network(READERS[name], size)
    result = ir.to_proto(given_back(traced(proto), (5, 6)).model)
    onnx.checker.check_model(result, full_check=True)
    for extent in [(5, 6)] if size == "5, 6" else [(5, 6), (9, 4), (3, 3)]:
        x = np.random.default_rng(1).standard_normal((3, 3, *extent)).astype(np.float32)
        wanted = outputs(proto, {"x": x})["z"] + contribution(proto, extent)
        assert difference({"z": wanted}, outputs(result, {"x": x})) < 2e-6
    before = outputs(proto, {"x": x})["z"]
    assert difference({"z": before}, {"z": wanted}) > 0.1


def test_one_convolution_more_and_no_large_tensor() -> None:
    """Any size costs the same few numbers: one tap for each output channel and kernel position."""
    result = ir.to_proto(given_back(traced(network(READERS["plain"], "H, W")), (5, 6)).model)
    kinds = [node.op_type for node in result.graph.node]
    assert sorted(kinds) == sorted(
        ["Conv", "Conv", "Conv", "Conv", "Add", "Shape", "Gather", "Concat", "ConstantOfShape"]
    )
    new = {tuple(one.dims) for one in result.graph.initializer} - {(6, 3, 1, 1), (6, 6, 1, 1)}
    assert new == {(6, 6, 3, 3), (6, 1, 3, 3), (2,)}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("size", ["5, 6", "H, W"])
def test_what_was_added_is_cut_with_the_readers_own_channels(name: str, size: str) -> None:
    subject = traced(network(READERS[name], size))
    full = given_back(subject, (5, 6))
    seeds = [int(one) for one in subject.units("y", 1)[:3]]
    cut = Cut(full.coupling, subject.closed(seeds))
    masked, sliced = full.model.clone(), full.model
    zero_removed(masked, cut)
    slice_removed(sliced, cut)
    small = ir.to_proto(sliced)
    onnx.checker.check_model(small, full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 3, 5, 6)).astype(np.float32)
    assert difference(outputs(ir.to_proto(masked), {"x": x}), outputs(small, {"x": x})) < 1e-6
    taps = next(one for one in small.graph.initializer if "constant_taps" in one.name)
    assert 6 not in taps.dims


def test_half_precision_stays_half() -> None:
    proto = network(READERS["plain"], "H, W", "float16")
    result = ir.to_proto(given_back(traced(proto), (5, 6)).model)
    onnx.checker.check_model(result, full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 3, 9, 4)).astype(np.float16)
    wanted = outputs(proto, {"x": x})["z"] + contribution(network(READERS["plain"], "H, W"), (9, 4))
    assert difference({"z": wanted}, outputs(result, {"x": x})) < 1e-2


@pytest.mark.parametrize("size", ["5, 6", "H, W"])
def test_a_constant_that_differs_from_place_to_place(size: str) -> None:
    """It is added as a constant map where the size is fixed, and on average where it is not."""
    proto = network(READERS["plain"], size)
    result = ir.to_proto(given_back(traced(proto), (5, 6), uniform=False).model)
    onnx.checker.check_model(result, full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 3, 5, 6)).astype(np.float32)
    wanted = outputs(proto, {"x": x})["z"] + contribution(proto, (5, 6))
    got = outputs(result, {"x": x})["z"]
    if size == "5, 6":
        assert difference({"z": wanted}, {"z": got}) < 2e-6
    else:
        assert difference({"z": wanted}, {"z": got}) > 1e-2
        np.testing.assert_allclose(
            got.mean(axis=(0, 2, 3)), wanted.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5
        )
