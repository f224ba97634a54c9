"""Files appear whole, in the right place, with the same bytes each time; or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxprune.errors import InputError
from onnxprune.model import save as save_module
from onnxprune.model.load import load
from onnxprune.model.save import check_writable, save, write_text_atomic

WIDTH = 32


def model() -> ir.Model:
    """Two 4 kB weights and a 128-byte bias, all inline."""
    built = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, {WIDTH}] x) => (float[N, {WIDTH}] y) {{
          first = MatMul(x, w1)
          second = MatMul(first, w2)
          y = Add(second, bias)
        }}
    """)
    proto = ir.to_proto(built)
    random = np.random.default_rng(0)
    for name, shape in (("w1", (WIDTH, WIDTH)), ("w2", (WIDTH, WIDTH)), ("bias", (WIDTH,))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return load(proto).model


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The same model with w1 and w2 in net.onnx.data, the bias inside."""
    folder = tmp_path / "original"
    folder.mkdir()
    ir.save(model(), folder / "net.onnx", external_data="net.onnx.data", size_threshold_bytes=1024)
    return folder / "net.onnx"


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def locations(path: Path) -> dict[str, str]:
    """Which data file each external initializer refers to."""
    proto = onnx.load(path, load_external_data=False)
    return {
        tensor.name: entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def halved(value: ir.Value) -> ir.LazyTensor:
    original = value.const_value
    assert original is not None
    return ir.LazyTensor(
        lambda: ir.tensor(original.numpy()[:, ::2]),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape([WIDTH, WIDTH // 2]),
        name=value.name,
    )


class TestModels:
    def test_equal_models_give_equal_bytes(self, tmp_path: Path) -> None:
        save(model(), tmp_path / "a.onnx")
        save(model(), tmp_path / "b.onnx")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_a_saved_model_loads_and_saves_to_itself(self, tmp_path: Path) -> None:
        save(model(), tmp_path / "a.onnx")
        save(load(tmp_path / "a.onnx").model, tmp_path / "b.onnx")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_inline_weights_stay_inline(self, tmp_path: Path) -> None:
        save(model(), tmp_path / "a.onnx")
        assert os.listdir(tmp_path) == ["a.onnx"]

    def test_lazy_weights_of_an_inline_model_stay_inline(self, tmp_path: Path) -> None:
        lazy = model()
        lazy.graph.initializers["w1"].const_value = halved(lazy.graph.initializers["w1"])
        save(lazy, tmp_path / "a.onnx")
        assert os.listdir(tmp_path) == ["a.onnx"]
        assert weights(tmp_path / "a.onnx")["w1"].shape == (WIDTH, WIDTH // 2)

    def test_files_get_the_usual_permissions(self, tmp_path: Path) -> None:
        save(model(), tmp_path / "a.onnx")
        (tmp_path / "usual").write_text("")
        assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_saving_leaves_the_model_as_it_was(self, external: Path, tmp_path: Path) -> None:
        loaded = load(external).model
        before = [value.const_value for value in loaded.graph.initializers.values()]
        save(loaded, tmp_path / "out.onnx")
        after = [value.const_value for value in loaded.graph.initializers.values()]
        assert all(a is b for a, b in zip(before, after, strict=True))


class TestExternalData:
    def test_it_moves_to_a_file_named_after_the_model(self, external: Path, tmp_path: Path) -> None:
        save(load(external).model, tmp_path / "out.onnx")
        data = tmp_path / "out.onnx.data"
        assert locations(tmp_path / "out.onnx") == {"w1": data.name, "w2": data.name}
        assert data.stat().st_size == 2 * WIDTH * WIDTH * 4
        for name, array in weights(external).items():
            np.testing.assert_array_equal(weights(tmp_path / "out.onnx")[name], array)

    def test_sliced_weights_stay_external(self, external: Path, tmp_path: Path) -> None:
        loaded = load(external).model
        for name in ("w1", "w2"):
            value = loaded.graph.initializers[name]
            value.const_value = halved(value)
        save(loaded, tmp_path / "out.onnx")
        assert set(locations(tmp_path / "out.onnx")) == {"w1", "w2"}
        np.testing.assert_array_equal(
            weights(tmp_path / "out.onnx")["w2"], weights(external)["w2"][:, ::2]
        )

    def test_weights_replaced_in_memory_stay_external(self, external: Path, tmp_path: Path) -> None:
        loaded = load(external).model
        loaded.graph.initializers["w1"].const_value = ir.tensor(np.ones((4, 4), np.float32))
        save(loaded.clone(), tmp_path / "out.onnx")
        assert set(locations(tmp_path / "out.onnx")) == {"w1", "w2"}

    def test_a_model_too_big_for_one_file_goes_external(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(save_module, "INLINE_LIMIT", 5000)
        save(model(), tmp_path / "out.onnx")
        assert set(locations(tmp_path / "out.onnx")) == {"w1", "w2"}

    def test_it_never_overwrites_the_weights_of_the_input(self, tmp_path: Path) -> None:
        ir.save(model(), tmp_path / "in.onnx", external_data="out.onnx.data")
        loaded = load(tmp_path / "in.onnx").model
        with pytest.raises(InputError, match="holds weights of the input"):
            save(loaded, tmp_path / "out.onnx", protect=tmp_path / "in.onnx")


class TestNothingLost:
    def test_the_input_is_protected_under_any_name(self, tmp_path: Path) -> None:
        original = tmp_path / "in.onnx"
        save(model(), original)
        (tmp_path / "symbolic.onnx").symlink_to(original)
        os.link(original, tmp_path / "hard.onnx")
        before = original.read_bytes()
        for name in ("in.onnx", "symbolic.onnx", "hard.onnx", "../" + tmp_path.name + "/in.onnx"):
            with pytest.raises(InputError, match="would overwrite the input"):
                save(model(), tmp_path / name, protect=original)
        assert original.read_bytes() == before

    @pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
    def test_a_failure_leaves_the_old_files(
        self, external: Path, tmp_path: Path, failure: type[BaseException]
    ) -> None:
        out = tmp_path / "out" / "net.onnx"
        out.parent.mkdir()
        save(load(external).model, out)
        before = {path.name: path.read_bytes() for path in out.parent.iterdir()}

        def fail() -> ir.TensorProtocol:
            raise failure

        broken = load(external).model
        broken.graph.initializers["w2"].const_value = ir.LazyTensor(
            fail, dtype=ir.DataType.FLOAT, shape=ir.Shape([WIDTH, WIDTH])
        )
        with pytest.raises(failure):
            save(broken, out)
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


class TestPaths:
    def test_a_missing_folder_is_refused_early(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            check_writable(tmp_path / "none" / "out.onnx")

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a regular file"):
            check_writable(tmp_path)

    def test_an_unwritable_folder_is_refused_early(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_arguments: object, **_options: object) -> int:
            raise PermissionError(13, "Permission denied")

        # Permissions do not bind the superuser, who runs the tests in many pipelines.
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(InputError, match="cannot be written: Permission denied"):
            check_writable(tmp_path / "out.onnx")

    def test_checking_leaves_no_trace(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "out.onnx")
        assert list(tmp_path.iterdir()) == []


def test_text_is_written_as_utf8_with_unix_lines(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "report.txt", "größer\n")
    assert (tmp_path / "report.txt").read_bytes() == "größer\n".encode()
