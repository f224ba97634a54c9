"""Sessions over any model: settings, external weights, odd element types, one-line failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxprune.errors import InputError, RuntimeFailure
from onnxprune.model import execution as session_module
from onnxprune.model.execution import open_session, run
from onnxprune.model.inputs import InputSpec, input_specs
from onnxprune.model.load import load
from onnxprune.model.runtime import Runtime

IDENTITY = (
    '<ir_version: 10, opset_import: ["": 21]> net ({0}[N] x) => ({0}[N] y) {{ y = Identity(x) }}'
)
MATMUL = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, weight) }
"""


def identity(element_type: str) -> ir.Model:
    return load(onnx.parser.parse_model(IDENTITY.format(element_type))).model


def external_model(folder: Path) -> ir.Model:
    """Multiplication by two, the weight in a file."""
    proto = onnx.parser.parse_model(MATMUL)
    weight = 2 * np.eye(64, dtype=np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(proto, folder / "net.onnx", save_as_external_data=True, location="net.data")
    return load(folder / "net.onnx").model


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("arena", [True, False])
@pytest.mark.parametrize("memory", ["planned", "unplanned", "brief"])
def test_a_model_runs_under_every_setting(optimise: bool, arena: bool, memory: Any) -> None:
    session = open_session(
        identity("float"), Runtime(threads=1), optimise=optimise, arena=arena, memory=memory
    )
    options = session.get_session_options()
    assert options.enable_cpu_mem_arena is arena
    assert options.enable_mem_reuse is options.enable_mem_pattern is (memory == "planned")
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(run(session, {"x": x})["y"], x)
    assert list(run(session, {"x": x}, ["y"])) == ["y"]


def test_protos_run_too() -> None:
    session = open_session(onnx.parser.parse_model(IDENTITY.format("float")), Runtime())
    assert run(session, {"x": np.ones(1, np.float32)})["y"].shape == (1,)


@pytest.mark.parametrize(
    ("element_type", "dtype"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8e4m3fn", ml_dtypes.float8_e4m3fn),
        ("double", np.float64),
        ("bool", np.bool_),
    ],
)
def test_element_types_pass_through_unchanged(element_type: str, dtype: type) -> None:
    x = np.array([0, 1, 1, 0]).astype(dtype)
    y = run(open_session(identity(element_type), Runtime()), {"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.tobytes() == x.tobytes()


def test_scalars_stay_scalars() -> None:
    model = load(onnx.parser.parse_model(IDENTITY.format("bfloat16").replace("[N]", ""))).model
    y = run(open_session(model, Runtime()), {"x": np.array(3, ml_dtypes.bfloat16)})["y"]
    assert y.shape == ()
    assert float(y) == 3


def test_strings_pass_through_unchanged() -> None:
    session = open_session(identity("string"), Runtime())
    assert run(session, {"x": np.array(["a", "b"], object)})["y"].tolist() == ["a", "b"]


class TestExternalData:
    x = np.arange(64, dtype=np.float32)[None]

    def test_it_is_found_from_any_working_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = external_model(tmp_path)
        monkeypatch.chdir("/")
        session = open_session(model, Runtime())
        np.testing.assert_array_equal(run(session, {"x": self.x})["y"], 2 * self.x)

    def test_mixes_with_weights_in_memory(self, tmp_path: Path) -> None:
        model = external_model(tmp_path)
        node = model.graph.node(0)
        scale = ir.Value(name="scale", const_value=ir.tensor(np.float32([3]), name="scale"))
        model.graph.register_initializer(scale)
        scaled = ir.node("Mul", [node.inputs[0], scale])
        model.graph.insert_before(node, scaled)
        node.replace_input_with(0, scaled.outputs[0])
        session = open_session(model, Runtime())
        np.testing.assert_array_equal(run(session, {"x": self.x})["y"], 6 * self.x)

    def test_too_much_for_one_message_goes_through_a_temporary_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = external_model(tmp_path)
        weight = model.graph.initializers["weight"]
        stored = weight.const_value
        assert stored is not None
        weight.const_value = ir.LazyTensor(
            lambda: ir.tensor(3 * stored.numpy()), ir.DataType.FLOAT, ir.Shape([64, 64])
        )
        monkeypatch.setattr(session_module, "_INLINE_BYTES", 1000)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        session = open_session(model, Runtime())
        np.testing.assert_array_equal(run(session, {"x": self.x})["y"], 6 * self.x)
        del session
        assert not list(tmp_path.glob("onnxprune-*"))


class TestFailures:
    def test_a_refused_model_is_one_line(self) -> None:
        model = ir.from_onnx_text(
            '<ir_version: 8, opset_import: ["": 17, "my": 1]> '
            "net (float[N] x) => (float[N] y) { y = my.Op(x) }"
        )
        with pytest.raises(RuntimeFailure, match=r"refuses the model: .*my") as caught:
            open_session(model, Runtime())
        assert "\n" not in str(caught.value)

    def test_a_failed_run_is_one_line(self) -> None:
        session = open_session(identity("float"), Runtime())
        with pytest.raises(RuntimeFailure, match="cannot run the model") as caught:
            run(session, {"x": np.ones((2, 2), np.float32)})
        assert "\n" not in str(caught.value)

    def test_what_onnxruntime_says_of_its_own_source_is_left_out(self) -> None:
        text = """<ir_version: 8, opset_import: ["": 17]>
            g (float[A] x, float[B] z, int64[K] shape) => (float[C] y)
            {{ r = Reshape(z, shape) y = {}(x, r) }}"""
        for op, shape, said in (
            ("Concat<axis = 0>", [4, 1], "input_rank == reference_rank was false"),
            ("Add", [4], "Attempting to broadcast"),
        ):
            session = open_session(onnx.parser.parse_model(text.format(op)), Runtime(threads=1))
            feed = {"x": np.ones(3, np.float32), "z": np.ones(4, np.float32)}
            with pytest.raises(RuntimeFailure) as caught:
                run(session, feed | {"shape": np.array(shape)})
            assert said in str(caught.value)
            assert "onnxruntime_src" not in str(caught.value)
            assert "::" not in str(caught.value)

    def test_nothing_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        session = open_session(identity("float"), Runtime())
        with pytest.raises(RuntimeFailure):
            run(session, {"x": np.ones((2, 2), np.float32)})
        assert capfd.readouterr() == ("", "")


class TestSettings:
    def test_unknown_providers_are_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InputError, match=r"'Abacus'.*CPUExecutionProvider"):
            Runtime(providers=("Abacus",)).validate()

    def test_negative_threads_are_refused(self) -> None:
        with pytest.raises(InputError, match="threads"):
            Runtime(threads=-1).validate()

    def test_the_default_is_valid(self) -> None:
        Runtime().validate()


class TestInputs:
    def test_shapes_hold_sizes_symbols_and_unknowns(self) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> '
            "net (float[N, 3, ?] a, bfloat16 b, string[2] c, float[] d) => (float[N, 3, ?] y) "
            "{ y = Relu(a) }"
        )
        assert input_specs(load(proto).model) == (
            InputSpec("a", np.dtype(np.float32), ("N", 3, None)),
            InputSpec("b", np.dtype(ml_dtypes.bfloat16), ()),
            InputSpec("c", np.dtype(object), (2,)),
            InputSpec("d", np.dtype(np.float32), None),
        )

    def test_initializers_need_not_be_fed(self) -> None:
        proto = onnx.parser.parse_model(MATMUL)
        weight = np.eye(64, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        proto.graph.input.append(onnx.helper.make_tensor_value_info("weight", 1, [64, 64]))
        assert [spec.name for spec in input_specs(load(proto).model)] == ["x"]

    def test_sequences_have_neither_dtype_nor_shape(self) -> None:
        proto = onnx.parser.parse_model(MATMUL)
        weight = np.eye(64, dtype=np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
        proto.graph.input.append(
            onnx.helper.make_tensor_sequence_value_info("list", onnx.TensorProto.FLOAT, None)
        )
        assert input_specs(load(proto).model)[1:] == (InputSpec("list", None, None),)
