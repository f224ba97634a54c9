"""A pruned file keeps everything of the original that pruning does not have to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import difference, feed, outputs, zeroed_by_contract
from onnx import TensorProto, helper, numpy_helper

import onnxprune

WIDTH = 8
CUT = {"deep/weight", "deep/bias", "head/weight"}


def drawn(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def network(opset: int = 17, ir_version: int = 10, inputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Conv, Relu, Conv beside weights that stay as they are; `inputs` are both."""
    weights = {
        "deep/weight": drawn(WIDTH, 3, 3, 3),
        "deep/bias": drawn(WIDTH),
        "head/weight": drawn(4, WIDTH, 3, 3),
        "kept/weight": drawn(4, 3, 9, 9),
        "kept/bias": drawn(4),
        "kept/scale": drawn(1, 4, 1, 1).astype(np.float16),
        "unused": drawn(2, 2),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "deep/weight", "deep/bias"], ["a"], "deep", **pads),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        helper.make_node("Conv", ["b", "head/weight"], ["c"], "head", **pads),
        helper.make_node(
            "Conv", ["x", "kept/weight", "kept/bias"], ["d"], "kept", pads=[4, 4, 4, 4]
        ),
        helper.make_node("Cast", ["kept/scale"], ["s"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["d", "s"], ["e"], "scaled"),
        helper.make_node("Add", ["c", "e"], ["y"], "sum"),
        helper.make_node("Shape", ["e"], ["size"], "size"),
    ]
    image = ["batch", 3, "height", 8]
    graph = helper.make_graph(
        nodes,
        "a graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, None, 8]),
            helper.make_tensor_value_info("size", TensorProto.INT64, [4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    for tensor in graph.initializer:
        if tensor.name in inputs:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    del model.opset_import[1:]
    return model


def documented() -> onnx.ModelProto:
    """The network with every field filled that says something and computes nothing."""
    model = network()
    model.producer_name, model.producer_version = "an exporter", "1.2"
    model.domain, model.model_version, model.doc_string = "org.example", 7, "about the model"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    graph = model.graph
    graph.doc_string = "about the graph"
    bias = next(tensor for tensor in graph.initializer if tensor.name == "kept/bias")
    bias.float_data.extend(numpy_helper.to_array(bias).tolist())
    bias.ClearField("raw_data")
    graph.input[0].type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph.input[0].type.denotation = "IMAGE"
    graph.quantization_annotation.add(tensor_name="kept/weight").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="kept/bias"
    )
    parts: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.initializer]
    for number, part in enumerate(parts):
        part.doc_string = f"about part {number}"
    for number, part in enumerate([model, graph, *parts]):
        part.metadata_props.add(key="an exporter.a", value="")
        part.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{number}']")
    return model


def pruned(source: Any, **options: Any) -> onnxprune.PruneResult:
    return onnxprune.prune(
        source, target={"channels": 0.5}, measure_latency=False, threads=1, **options
    )


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the numbers of the tensors that are cut, and without value_info."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in CUT:
            del tensor.dims[:]
            tensor.ClearField("raw_data")
            tensor.ClearField("external_data")
    for value in result.graph.input:
        if value.name in CUT:
            value.ClearField("type")
    del result.graph.value_info[:]
    return result


@pytest.mark.parametrize("kind", ["path", "proto"])
def test_everything_else_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    original = documented()
    onnx.save(original, tmp_path / "in.onnx")
    result = pruned(tmp_path / "in.onnx" if kind == "path" else original)
    result.save(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert set(result.plan.initializers) == CUT
    assert without_weights(written) == without_weights(original)
    if kind == "proto":
        assert without_weights(result.model) == without_weights(original)


@pytest.mark.parametrize("split", [False, True])
def test_external_data_stays_external(tmp_path: Path, split: bool) -> None:
    """From one file or one for each tensor to one; what was inside stays inside."""
    original = documented()
    onnx.save(
        original,
        tmp_path / "in.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=not split,
        location=None if split else "in.weights",
        size_threshold=100,
    )
    outside = {t.name for t in stored(tmp_path / "in.onnx") if t.external_data}
    assert "kept/weight" in outside > {"deep/weight"}
    pruned(tmp_path / "in.onnx").save(tmp_path / "out.onnx")
    assert {t.name for t in stored(tmp_path / "out.onnx") if t.external_data} == outside
    locations = {t.external_data[0].value for t in stored(tmp_path / "out.onnx") if t.external_data}
    assert locations == {"out.onnx.data"}
    for tensor in stored(tmp_path / "out.onnx"):
        assert tensor.doc_string.startswith("about part")
        assert len(tensor.metadata_props) == 2
    written = onnx.load(tmp_path / "out.onnx")
    for tensor, before in zip(
        written.graph.initializer, documented().graph.initializer, strict=True
    ):
        assert tensor.name in CUT or tensor.raw_data == before.raw_data


def stored(path: Path) -> list[onnx.TensorProto]:
    return list(onnx.load(path, load_external_data=False).graph.initializer)


@pytest.mark.parametrize("ir_version", range(3, 14))
@pytest.mark.parametrize("declared", ["none", "some", "all"])
def test_ir_versions(ir_version: int, declared: str) -> None:
    """Initializers may be inputs as well, in IR 3 they all are; declared shapes follow the cut."""
    inputs: tuple[str, ...] = ("deep/weight", "head/weight", "kept/bias")
    if ir_version == 3 or declared == "all":
        inputs = tuple(tensor.name for tensor in network().graph.initializer)
    elif declared == "none":
        inputs = ()
    original = network(9, ir_version, inputs)
    result = pruned(original)
    assert result.model.ir_version == ir_version
    assert [v.name for v in result.model.graph.input] == ["x", *inputs]
    shapes = {t.name: list(t.dims) for t in result.model.graph.initializer}
    for value in result.model.graph.input[1:]:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == shapes[value.name]
    check(original, result)


@pytest.mark.parametrize("opset", range(9, 27))
def test_opsets(opset: int) -> None:
    original = network(opset)
    result = pruned(original)
    assert [(o.domain, o.version) for o in result.model.opset_import] == [("", opset)]
    check(original, result)


def check(original: onnx.ModelProto, result: onnxprune.PruneResult) -> None:
    """It computes what the plan says, at two sizes."""
    assert set(result.plan.initializers) == CUT
    kept = {
        name: {axis: np.array(indices) for axis, indices in axes.items()}
        for name, axes in result.plan.initializers.items()
    }
    zeroed = zeroed_by_contract(original, kept)
    for batch in (8, 9):
        inputs = feed(original, batch)
        assert difference(outputs(zeroed, inputs), outputs(result.model, inputs)) < 1e-4
