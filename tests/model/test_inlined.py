"""Constants of local functions: where they come from once calls are inlined."""

from __future__ import annotations

import io

import onnx
import onnx.parser

import onnxprune
from onnxprune.model.inlined import InlinedConstant
from onnxprune.model.load import convert, load
from onnxprune.report.text import TextReport, make_console

NESTED = onnx.parser.parse_model("""
    <ir_version: 9, opset_import: ["": 18, "local": 1]>
    net (float[N, 4] x) => (float[N, 3] y)
    <float[4, 3] b = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
    {
        [first] k = local.Block (x)
        l = local.Block (k)
        y = MatMul (l, b)
    }
    <domain: "local", opset_import: ["": 18, "local": 1]>
    Block (x) => (y)
    {
        [inner] h = local.Dense (x)
        y = Relu (h)
    }
    <domain: "local", opset_import: ["": 18]>
    Dense (x) => (y)
    {
        w = Constant <value = float[4, 4] {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> ()
        b = Constant <value = float[4] {1, 2, 3, 4}> ()
        h = MatMul (x, w)
        y = Add (h, b)
    }
    """)


def test_each_call_has_constants_of_its_own_with_a_path_to_them() -> None:
    loaded = load(NESTED)
    constants = [node for node in loaded.model.graph if node.op_type == "Constant"]
    assert loaded.inlined.keys() == {node.outputs[0].name for node in constants}
    found = sorted((origin.call, origin.name) for origin in loaded.inlined.values())
    # a call without a name is called after its first output
    assert found == [(f"{call}/inner", name) for call in ("first", "l") for name in "bw"]
    assert {origin.function for origin in loaded.inlined.values()} == {"local::Dense"}
    # the name is taken in the main graph
    assert loaded.inlined["b_2"] == InlinedConstant("first/inner", "local::Dense", "b")
    assert str(loaded.inlined["b_2"]) == "b of local::Dense, called at first/inner"


def test_nothing_is_left_of_the_marks() -> None:
    model = load(NESTED).model
    assert not any(node.metadata_props for node in model.graph.all_nodes())
    assert b"onnxprune" not in convert(model, "proto").SerializeToString()


def test_a_model_without_functions_has_none() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> net (float[N] x) => (float[N] y) '
        "{ c = Constant<value = float {2}>() y = Mul(x, c) }"
    )
    assert not load(model).inlined


def test_plan_and_report_say_where_what_was_cut_stands_in_the_file() -> None:
    result = onnxprune.prune(NESTED, target={"channels": 0.5}, measure_latency=False)
    plan = result.plan
    assert plan.inlined.keys() == plan.initializers.keys() - {"b"}
    for name, origin in plan.inlined.items():
        function = next(f for f in NESTED.functions if origin["function"].endswith(f.name))
        assert origin["name"] in {output for node in function.node for output in node.output}
        assert origin["call"].endswith("/inner")
        assert result.report.inlined[name].startswith(f"{origin['name']} of local::Dense, called ")
    text = io.StringIO()
    TextReport(make_console(text)).pruned("", result.report)
    group = plan.groups[0].id.rpartition("[")[0]
    assert f"{group} is w of local::Dense, called at " in text.getvalue()
    assert 'title="w of local::Dense, called at ' in result.report.to_html()
    assert onnxprune.Plan.from_json(plan.to_json()) == plan
    again = onnxprune.apply(NESTED, plan, measure_latency=False)
    assert again.plan == plan
