"""Running pipelines: every pass is checked, compared and accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from helpers.oracle import difference, outputs
from helpers.solving import images, mlp

import onnxprune
from onnxprune.api import run_pipeline
from onnxprune.errors import InputError, VerificationError

X = images(48, 8)


def ran(*passes: Any, model: Any = None, **options: Any) -> onnxprune.PipelineResult:
    given = {"calibration": {"x": X}, "threads": 1, "measure_latency": False, **options}
    return run_pipeline(mlp() if model is None else model, list(passes), **given)


class Rename(ir.passes.InPlacePass):
    """Rename an output."""

    changes_interface: ClassVar[bool] = False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.outputs[0].name = "z"
        return ir.passes.PassResult(model, True)


class RenameOpenly(Rename):
    """Rename an output, and say so."""

    changes_interface: ClassVar[bool] = True


class Double(ir.passes.InPlacePass):
    """Take inputs of twice the size."""

    changes_interface: ClassVar[bool] = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        x = model.graph.inputs[0]
        half = ir.tensor(np.float32(0.5), name="half")
        value = ir.Value(name="half", const_value=half)
        model.graph.register_initializer(value)
        node = ir.node("Mul", [x, value])
        x.replace_all_uses_with(node.outputs[0])
        node.replace_input_with(0, x)
        model.graph.insert_before(model.graph[0], node)
        return ir.passes.PassResult(model, True)

    def convert(self, feed: dict[str, Any]) -> dict[str, Any]:
        return {"x": 2 * feed["x"]}


class Damage(ir.passes.InPlacePass):
    """Leave a model that cannot run."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph[0].op_type = "NoSuchOp"
        return ir.passes.PassResult(model, True)


class Remarks(ir.passes.InPlacePass):
    """Do nothing, and say so."""

    def __init__(self) -> None:
        super().__init__()
        self.details = {"found": 3}

    def remark(self, latency: Any) -> str:
        return "nothing" if latency is None else f"measured {latency.pairs > 0}"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


def proto_pass(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.producer_name = "changed"
    return proto


def graph_pass(graph: gs.Graph, name: str = "renamed") -> None:
    graph.name = name


def model_pass(model: ir.Model) -> None:
    model.producer_name = "changed"


def failing(model: ir.Model) -> None:
    raise ZeroDivisionError("by design")


def test_one_pass_after_another_each_with_a_report() -> None:
    before = mlp().SerializeToString()
    model = mlp()
    result = ran({"prune": {"target": {"macs": 0.6}}}, "remove-lossless", model=model)
    assert [one.name for one in result.steps] == ["prune", "remove-lossless"]
    first, second = result.steps
    assert first.sizes.macs <= 0.6 * result.original.macs
    assert first.outputs[0].cosine is not None
    assert first.details["certificate"]["error"] <= first.details["certificate"]["tolerance"]
    assert not second.modified
    assert second.sizes.macs == first.sizes.macs
    assert model.SerializeToString() == before
    assert isinstance(result.model, onnx.ModelProto)


def test_it_does_what_prune_does() -> None:
    target = {"macs": 0.6}
    alone = onnxprune.prune(mlp(), calibration={"x": X}, target=target, threads=1)
    both = ran({"prune": {"target": target}})
    assert difference(outputs(alone.model, {"x": X}), outputs(both.model, {"x": X})) < 1e-6


def test_the_result_is_saved(tmp_path: Path) -> None:
    result = ran("sparsify-weights")
    result.save(tmp_path / "small.onnx")
    saved = onnx.load(tmp_path / "small.onnx")
    assert difference(outputs(result.model, {"x": X}), outputs(saved, {"x": X})) == 0


def either_pass(anything: "gs.Graph | onnx.ModelProto") -> None:  # noqa: UP037
    anything.producer_name = "changed"


def union_pass(anything: ir.Model | onnx.ModelProto) -> None:
    anything.producer_name = "changed"


def named_pass(model: "SomethingElse") -> None:  # type: ignore[name-defined] # noqa: F821, UP037
    model.producer_name = "changed"


FUNCTIONS = [proto_pass, graph_pass, model_pass, either_pass, union_pass, named_pass]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_every_kind_of_model(function: Any) -> None:
    result = ran(function)
    assert (result.model.producer_name, result.model.graph.name) != ("", "g")
    assert difference(outputs(mlp(), {"x": X}), outputs(result.model, {"x": X})) == 0


def test_a_function_of_a_file_takes_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def rename(graph, name: str = 'a'):\n    graph.name = name\n")
    result = ran({f"{path}:rename": {"name": "b"}})
    assert result.model.graph.name == "b"
    with pytest.raises(InputError, match="name must be text, not 3"):
        ran({f"{path}:rename": {"name": 3}})


def test_rewrite_rules() -> None:
    class Rules:
        def apply_to_model(self, model: ir.Model) -> int:
            model.producer_name = "rewritten"
            return 1

    result = ran(Rules())
    assert result.steps[0].modified
    assert result.model.producer_name == "rewritten"


def test_another_interface_is_refused_unless_the_pass_says_so() -> None:
    with pytest.raises(VerificationError, match=r"after .*Rename.*: the result's outputs differ"):
        ran(Rename())
    result = ran(RenameOpenly(), "sparsify-weights")
    first, second = result.steps
    assert (first.new_interface, second.new_interface) == (True, False)
    # what follows is compared with the model of the new interface
    assert not first.outputs
    assert second.outputs[0].output == "z"


def test_samples_follow_new_inputs() -> None:
    result = ran(Double(), {"sparsify-weights": {"criterion": "wanda", "amount": 0.01}})
    assert result.steps[1].outputs[0].cosine > 0.99
    got = outputs(ran(Double()).model, {"x": 2 * X})
    assert difference(outputs(mlp(), {"x": X}), got) < 1e-6


def test_a_model_that_does_not_run_is_refused() -> None:
    with pytest.raises(VerificationError, match="after pipeline: pass 1"):
        ran(Damage())


def test_a_pass_of_somebody_elses_that_fails_is_named() -> None:
    with pytest.raises(InputError, match=r"pass 2 \(failing\).*ZeroDivisionError: by design"):
        ran("remove-lossless", failing)


def test_a_pass_of_somebody_elses_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import onnx_ir as ir\n"
        "class Rewrite(ir.passes.InPlacePass):\n"
        "    def __init__(self, rules, /): pass\n"
        "    def call(self, model): pass\n"
    )
    with pytest.raises(InputError, match=r"pass 1 .*Rewrite.*cannot be made: TypeError: .*'rules'"):
        ran(f"{path}:Rewrite")


def test_mistakes_are_found_before_anything_runs() -> None:
    ran_first: list[int] = []

    def count(model: ir.Model) -> None:
        ran_first.append(1)

    with pytest.raises(InputError, match="unknown pattern"):
        ran(count, {"sparsify-weights": {"pattern": "2by4"}})
    with pytest.raises(InputError, match="needs samples"):
        ran(count, {"quantize": {"mode": "static"}}, calibration=None)
    assert not ran_first


def test_details_and_remarks_reach_the_report() -> None:
    step = ran(Remarks()).steps[0]
    assert (step.details, step.remark, step.latency) == ({"found": 3}, "nothing", None)
    timed = ran(Remarks(), measure_latency=True).steps[0]
    assert timed.latency is not None
    assert timed.remark == "measured True"


def test_a_remark_of_somebody_elses_that_fails_is_named() -> None:
    class Wrong(Remarks):
        def remark(self, latency: Any) -> str:
            raise KeyError("none")

    with pytest.raises(InputError, match=r"pass 1 \(Wrong\): its remark failed: KeyError"):
        ran(Wrong())


def test_the_report_is_a_page_of_its_own(tmp_path: Path) -> None:
    source, page = tmp_path / "model.onnx", tmp_path / "report.html"
    onnx.save(mlp(), source)
    result = ran("sparsify-weights", model=source)
    result.save_report(page)
    assert "sparsify-weights" in page.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="would overwrite the input"):
        result.save_report(source)


def test_without_samples() -> None:
    result = ran("remove-lossless", "sparsify-weights", "quantize", calibration=None)
    assert [one.outputs for one in result.steps] == [(), (), ()]
    assert result.steps[2].details["mode"] == "dynamic"


class Writes(ir.passes.InPlacePass):
    """Leave a file beside the model."""

    def __init__(self, suffix: str = ".map.json") -> None:
        super().__init__()
        self.files = {suffix: "{}"}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


def test_files_of_passes_stand_beside_the_model(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    result = ran(Writes(), "sparsify-weights", Writes())
    result.save(out)
    names = ["small.3.map.json", "small.map.json", "small.onnx"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names
    assert list(result.files_beside(out)) == [tmp_path / names[1], tmp_path / names[0]]


def test_files_of_passes_are_never_written_over_what_was_read(tmp_path: Path) -> None:
    read = tmp_path / "small.map.json"
    read.write_text("[]")
    code = tmp_path / "mine.py"
    code.write_text("def read(model, names: str = ''):\n    pass\n")
    result = ran({f"{code}:read": {"names": str(read)}}, Writes())
    with pytest.raises(InputError, match="would overwrite the input"):
        result.save(tmp_path / "small.onnx")
    assert read.read_text() == "[]"
    assert not (tmp_path / "small.onnx").exists()


def test_files_of_passes_do_not_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no ending of a file name"):
        ran(Writes("/../map.json")).save(tmp_path / "small.onnx")
    assert not list(tmp_path.iterdir())


class Wants(ir.passes.InPlacePass):
    """Prefer earlier passes to round."""

    prefers: ClassVar[dict[str, Any]] = {"round_to": 8}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


def kept(result: onnxprune.PipelineResult) -> set[int]:
    return {one["after"] for one in result.steps[0].details["widths"].values()}


def test_an_earlier_pass_is_run_as_a_later_one_prefers() -> None:
    result = ran({"prune": {"target": {"macs": 0.6}}}, Wants())
    assert all(width % 8 == 0 for width in kept(result))
    assert result.steps[0].notes == ("run with round_to=8, as Wants prefers",)
    # what stands in the plan is what was set
    assert result.plan.steps[0].options == {"target": {"macs": 0.6}}


def test_what_is_set_wins_over_what_is_preferred() -> None:
    result = ran({"prune": {"target": {"macs": 0.6}, "round_to": 1}}, Wants())
    assert not result.steps[0].notes
    assert any(width % 8 for width in kept(result))


def test_what_is_preferred_is_not_demanded() -> None:
    result = ran({"prune": {"target": {"macs": 0.2}}}, Wants(), force=True)
    assert result.steps[0].sizes.macs <= 0.2 * result.original.macs
    (note,) = result.steps[0].notes
    assert note == "run without round_to=8, as Wants prefers: too little can go with that"


def test_a_pass_prefers_nothing_of_later_ones() -> None:
    assert not ran(Wants(), {"prune": {"target": {"macs": 0.6}}}).steps[1].notes


def test_static_quantisation_prefers_multiples() -> None:
    result = ran({"prune": {"target": {"macs": 0.6}}}, "quantize")
    assert result.steps[0].notes == ("run with round_to=4, as quantize prefers",)
    assert all(width % 4 == 0 for width in kept(result))
    dynamic = ran({"prune": {"target": {"macs": 0.6}}}, {"quantize": {"mode": "dynamic"}})
    assert not dynamic.steps[0].notes


def test_latency_is_that_against_the_model_the_pipeline_was_given() -> None:
    result = ran(RenameOpenly(), "sparsify-weights", measure_latency=True)
    assert all(one.latency is not None for one in result.steps)


def test_what_passes_tell_need_not_be_what_is_expected() -> None:
    class Odd(Remarks):
        def __init__(self) -> None:
            super().__init__()
            self.details = "told in words"
            self.files = 3
            self.plan = ["no", "mapping"]
            self.prefers = 5

    (step,) = ran(Odd()).steps
    assert (step.details, step.files, step.plan) == ({}, {}, None)
