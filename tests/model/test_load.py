"""What `load` accepts, what it refuses in one line, and what it leaves alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxprune.errors import InputError
from onnxprune.model.load import convert, load
from onnxprune.model.observe import constants_of
from onnxprune.model.tensors import data_file_of

RELU = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
  hidden = MatMul(x, weight)
  y = Relu(hidden)
}
"""


def text(model: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(model)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(text(RELU), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose 4 kB weight lies in net.onnx.data beside it."""
    weight = onnx.numpy_helper.from_array(np.ones((32, 32), np.float32), "weight")
    proto = text(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 32] x) => (float[N, 32] y) '
        "{ y = MatMul(x, weight) }"
    )
    proto.graph.initializer.append(weight)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    return path


def relocate(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())


def refusal(source: object) -> str:
    with pytest.raises(InputError) as caught:
        load(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestKinds:
    def test_a_path_is_known_by_the_digest_of_its_bytes(self, file: Path) -> None:
        for source in (file, str(file)):
            loaded = load(source)
            assert loaded.kind == "path"
            assert loaded.path == file
            assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_proto_and_file_of_the_same_model_share_their_digest(self, file: Path) -> None:
        assert load(onnx.load(file)).sha256 == load(file).sha256

    def test_an_ir_model_is_copied_not_changed(self, file: Path) -> None:
        source = ir.load(file)
        loaded = load(source)
        loaded.model.graph.remove(loaded.model.graph.node(1), safe=False)
        assert loaded.kind == "ir"
        assert [node.op_type for node in source.graph] == ["MatMul", "Relu"]

    def test_digests_of_ir_models_depend_on_their_weights(self, file: Path) -> None:
        source = ir.load(file)
        before = load(source).sha256
        source.graph.initializers["weight"].const_value = ir.tensor(np.zeros((4, 3), np.float32))
        assert load(source).sha256 != before

    def test_a_graphsurgeon_graph_goes_in_and_comes_out(self) -> None:
        gs = pytest.importorskip("onnx_graphsurgeon")
        loaded = load(gs.import_onnx(text(RELU)))
        back = convert(loaded.model, loaded.kind)
        assert loaded.kind == "graphsurgeon"
        assert isinstance(back, gs.Graph)
        assert [node.op for node in back.nodes] == ["MatMul", "Relu"]

    @pytest.mark.parametrize(("kind", "cls"), [("path", ir.Model), ("ir", ir.Model)])
    def test_paths_and_ir_models_give_ir_models_back(self, file: Path, kind, cls) -> None:
        assert isinstance(convert(load(file).model, kind), cls)

    def test_a_proto_given_back_carries_external_weights(self, external: Path) -> None:
        proto = convert(load(external).model, "proto")
        assert isinstance(proto, onnx.ModelProto)
        assert onnx.numpy_helper.to_array(proto.graph.initializer[0]).sum() == 32 * 32

    def test_other_objects_are_refused_by_type(self) -> None:
        assert "not dict" in refusal({})


class TestModels:
    def test_initializers_that_are_also_inputs_stay_both(self) -> None:
        proto = text(RELU)
        proto.ir_version = 3
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT, [4, 3])
        )
        graph = load(proto).model.graph
        assert [value.name for value in graph.inputs] == ["x", "weight"]
        assert "weight" in graph.initializers

    def test_constants_of_the_caller_keep_their_names(self) -> None:
        proto = text("""
            <ir_version: 9, opset_import: ["": 18]> net (float[N, 4] x) => (float[N, 3] y) {
                w = Constant <value = float[4, 3] {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}> ()
                y = MatMul (x, w) }""")
        model = ir.from_proto(proto)
        before = proto.SerializeToString(), load(model).sha256
        for source in (proto, model):
            constants_of(load(source).model.graph)
        assert (proto.SerializeToString(), load(model).sha256) == before

    def test_local_functions_are_inlined_and_subgraphs_kept(self) -> None:
        proto = text("""
            <ir_version: 8, opset_import: ["": 17, "local": 1]>
            net (float[N] x, bool c) => (float[N] y) {
              f = local.twice(x)
              y = If(c) <
                then_branch = yes () => (float[N] a) { a = Relu(f) },
                else_branch = no () => (float[N] b) { b = Neg(f) }
              >
            }
            <domain: "local", opset_import: ["": 17]>
            twice (v) => (w) { w = Add(v, v) }
        """)
        model = load(proto).model
        assert not model.functions
        assert [node.op_type for node in model.graph] == ["Add", "If"]
        assert len(list(model.graphs())) == 3

    def test_a_bias_left_out_by_an_empty_name_is_left_out(self) -> None:
        """The optimiser of onnxruntime crashes on the empty name."""
        proto = text("""
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 3] x) => (float[N, 3] y) <float[3] scale = {1, 1, 1}> {
              y = LayerNormalization(x, scale)
            }
        """)
        proto.graph.node[0].input.append("")
        assert [value.name for value in load(proto).model.graph[0].inputs] == ["x", "scale"]

    def test_nodes_out_of_order_are_sorted(self) -> None:
        proto = text(RELU)
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend(reversed(nodes))
        model = load(proto).model
        assert [node.op_type for node in model.graph] == ["MatMul", "Relu"]

    def test_external_weights_stay_on_the_disk(self, external: Path) -> None:
        weight = load(external).model.graph.initializers["weight"]
        assert isinstance(weight.const_value, ir.ExternalTensor)
        assert data_file_of(weight) == external.with_name("net.onnx.data")

    def test_external_weights_are_found_from_any_working_folder(
        self, external: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(external.parent)
        model = load("net.onnx").model
        monkeypatch.chdir("/")
        assert model.graph.initializers["weight"].const_value.numpy().sum() == 32 * 32


class TestFilesRefused:
    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(tmp_path / "none.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"hello, I am a README\n", "is a text file"),
            (b"PK\x03\x04 and so on", "a zip archive"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            (bytes(range(256)), "is not a readable ONNX model"),
            (onnx.TensorProto(name="t").SerializeToString(), "not a"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: bytes, reason: str) -> None:
        path = tmp_path / "net.onnx"
        path.write_bytes(content)
        assert reason in refusal(path)

    def test_every_truncation(self, file: Path) -> None:
        whole = file.read_bytes()
        for length in range(1, len(whole)):
            file.write_bytes(whole[:length])
            assert str(file) in refusal(file)


class TestModelsRefused:
    @pytest.mark.parametrize("version", [6, onnx.defs.onnx_opset_version() + 1])
    def test_unknown_opsets(self, version: int) -> None:
        proto = text(RELU)
        proto.opset_import[0].version = version
        assert f"uses opset {version}" in refusal(proto)

    def test_newer_ir_versions(self) -> None:
        proto = text(RELU)
        proto.ir_version = onnx.IR_VERSION + 1
        assert "upgrade onnx" in refusal(proto)

    def test_inputs_nothing_produces(self) -> None:
        proto = text(RELU)
        proto.graph.node[1].input[0] = "ghost"
        assert "reads 'ghost', which nothing produces" in refusal(proto)

    def test_outputs_nothing_produces(self) -> None:
        proto = text(RELU)
        proto.graph.output[0].name = "ghost"
        assert "nothing produces the output 'ghost'" in refusal(proto)

    def test_tensors_produced_twice(self) -> None:
        proto = text(RELU)
        proto.graph.node[1].output[0] = "hidden"
        assert "'hidden' is produced twice" in refusal(proto)

    def test_cycles(self) -> None:
        proto = text(RELU)
        proto.graph.node[0].input[0] = "y"
        assert "cycle" in refusal(proto)

    def test_dangling_inputs_inside_subgraphs(self) -> None:
        assert "'ghost'" in refusal(
            text("""
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N] x, bool c) => (float[N] y) {
              y = If(c) <
                then_branch = yes () => (float[N] a) { a = Relu(ghost) },
                else_branch = no () => (float[N] b) { b = Neg(x) }
              >
            }
        """)
        )

    def test_sparse_initializers(self) -> None:
        proto = text(RELU)
        proto.graph.sparse_initializer.add().values.name = "few"
        assert "sparse initializer 'few'" in refusal(proto)

    def test_weights_that_do_not_fill_their_shape(self) -> None:
        proto = text(RELU)
        proto.graph.initializer[0].dims[0] = 5
        assert "'weight' of shape [5, 3] holds 12 elements instead of 15" in refusal(proto)

    @pytest.mark.parametrize("dtype", [onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING])
    def test_weights_whose_type_cannot_hold_their_data(self, dtype: int) -> None:
        proto = text(RELU)
        proto.graph.initializer[0].ClearField("float_data")
        proto.graph.initializer[0].raw_data = bytes(48)
        proto.graph.initializer[0].data_type = dtype
        assert "'weight' has no data type its data could be of" in refusal(proto)

    @pytest.mark.parametrize(
        ("dtype", "elements"),
        [("BFLOAT16", 11), ("INT4", 7), ("COMPLEX64", 12), ("UINT64", 0), ("BOOL", 13)],
    )
    def test_weights_of_any_type_that_do_not_fill_their_shape(
        self, dtype: str, elements: int
    ) -> None:
        proto = text(RELU)
        weight = proto.graph.initializer[0]
        weight.ClearField("float_data")
        weight.data_type = onnx.TensorProto.DataType.Value(dtype)
        weight.int32_data.extend([0] * elements)
        assert "'weight' of shape [4, 3] holds" in refusal(proto)

    @pytest.mark.parametrize(
        ("attributes", "outputs"),
        [
            ({}, ["c"]),
            ({"value": 1.0}, ["c"]),
            ({"perm": [0]}, ["c"]),
            ({"value_int": 1, "value_float": 1.0}, ["c"]),
            ({"value_int": 1}, ["c", "d"]),
            ({"value_int": 1}, []),
        ],
    )
    def test_constants_without_one_value(
        self, attributes: dict[str, object], outputs: list[str]
    ) -> None:
        proto = text(RELU)
        proto.graph.node.add().CopyFrom(
            onnx.helper.make_node("Constant", [], outputs, name="odd", **attributes)
        )
        assert "the Constant node 'odd' has to have one value and one output" in refusal(proto)

    @pytest.mark.parametrize("group", [0, -1, 2**62])
    def test_attributes_that_crash_onnxruntime(self, group: int) -> None:
        proto = text(RELU)
        proto.graph.node[1].attribute.append(onnx.helper.make_attribute("group", group))
        assert f"has group={group}, which has to be a positive number" in refusal(proto)

    def test_splits_with_a_part_left_out(self) -> None:
        proto = text(RELU)
        proto.graph.node.add().CopyFrom(onnx.helper.make_node("Split", ["x"], ["a", ""], name="s"))
        assert "the Split node 's' leaves out a part" in refusal(proto)

    def test_functions_that_call_themselves_stay_calls(self) -> None:
        """onnxruntime is the one to refuse them."""
        proto = text("""
            <ir_version: 8, opset_import: ["": 17, "local": 1]>
            net (float[N] x) => (float[N] y) { y = local.again(x) }
            <domain: "local", opset_import: ["": 17, "local": 1]>
            again (a) => (b) { b = local.again(a) }
        """)
        assert load(proto).model.functions

    def test_text_that_is_no_text(self, file: Path) -> None:
        file.write_bytes(file.read_bytes().replace(b"hidden", b"hid\xffen"))
        assert str(file) in refusal(file)

    def test_graphs_without_nodes(self) -> None:
        proto = text(RELU)
        del proto.graph.node[:]
        assert "no nodes" in refusal(proto)

    def test_protos_without_their_external_data(self, external: Path) -> None:
        proto = onnx.load(external, load_external_data=False)
        assert "give the path" in refusal(proto)


class TestExternalDataRefused:
    def test_missing(self, external: Path) -> None:
        external.with_name("net.onnx.data").unlink()
        assert "'weight' is missing" in refusal(external)

    def test_too_short(self, external: Path) -> None:
        os.truncate(external.with_name("net.onnx.data"), 100)
        assert "holds 100 bytes of the 4096 needed" in refusal(external)

    def test_outside_the_folder_of_the_model(self, external: Path) -> None:
        outside = external.parent.parent / "outside.data"
        outside.write_bytes(bytes(4096))
        for location in ("../outside.data", str(outside)):
            relocate(external, location)
            assert "outside the model's folder" in refusal(external)

    def test_behind_a_link_that_leaves_the_folder(self, external: Path) -> None:
        outside = external.parent.parent / "linked.data"
        external.with_name("net.onnx.data").replace(outside)
        external.with_name("net.onnx.data").symlink_to(outside)
        assert "outside the model's folder" in refusal(external)
