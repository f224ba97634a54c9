"""The ONNX project's own test models: pruned validly or refused, never anything else.

Nearly all of them are one operator between graph inputs and outputs, where nothing can be cut. So
each comes in two more forms: with every input but the first as a weight, and with a linear layer
before and behind it that makes one axis cuttable. That puts the coupling rule of every operator
under test, with the attributes that the authors of the operator found worth testing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import Arrays, zeroed_by_contract
from helpers.oracle import outputs as run
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

import onnxprune
from onnxprune.verification.comparison import largest_difference

Named = tuple[str, onnx.ModelProto]

# The operators' own test data overflow on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

WIDTH = 8
RUNNABLE_IR_VERSION, RUNNABLE_OPSET = 10, 23


def stored_models() -> Iterator[Named]:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(folder.glob("*/*/model.onnx")):
        model, name = onnx.load(path), f"{path.parent.parent.name}/{path.parent.name}"
        yield name, model
        if model.opset_import[0].version < 7 and path.parent.parent.name != "simple":
            yield f"{name} converted", onnx.version_converter.convert_version(model, 13)


def node_models() -> Iterator[Named]:
    for case in collect_testcases(None):
        yield case.name, case.model


def weighted_models() -> Iterator[Named]:
    """Every operator with its parameters as weights."""
    for case in collect_testcases(None):
        given = inputs_of(case)
        names = [name for name in list(given)[1:] if isinstance(given[name], np.ndarray)]
        if names:
            yield f"{case.name} weighted", runnable(with_weights(case.model, given, names))


def linked_models(*, same_axis: bool) -> Iterator[Named]:
    """Every operator between linear layers: along one axis, or along any drawn at random."""
    for case in collect_testcases(None):
        rng = np.random.default_rng([*case.name.encode()])
        given, (_, wanted) = inputs_of(case), case.data_sets[0]
        names = [name for name, value in given.items() if is_linkable(value)]
        results = [value.name for value in case.model.graph.output]
        returned = dict(zip(results, wanted, strict=False))
        if not names or not is_linkable(returned[results[0]]):
            continue
        linked = {names[0], *(name for name in names if rng.random() < 0.5)}
        rest = {n for n, v in given.items() if n not in linked and isinstance(v, np.ndarray)}
        model = runnable(with_weights(case.model, given, sorted(rest)))
        common = int(rng.integers(given[names[0]].ndim))
        for name in sorted(linked):
            rank = given[name].ndim
            axis = common % rank if same_axis else int(rng.integers(rank))
            prepend_linear(model, name, given[name].shape, axis, rng)
        for name, value in returned.items():
            if is_linkable(value):
                axis = common % value.ndim if same_axis else int(rng.integers(value.ndim))
                append_linear(model, name, value.shape, axis, rng)
        yield f"{case.name} linked", model


def inputs_of(case: Any) -> dict[str, Any]:
    values, _ = case.data_sets[0]
    names = [value.name for value in case.model.graph.input]
    return dict(zip(names, values, strict=False))


def is_linkable(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and 0 < value.ndim < 7


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Lower versions that onnxruntime does not know yet; most operators have not changed since."""
    model.ir_version = min(model.ir_version, RUNNABLE_IR_VERSION)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = min(opset.version, RUNNABLE_OPSET)
    return model


def with_weights(
    model: onnx.ModelProto, given: dict[str, Any], names: list[str]
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [value for value in result.graph.input if value.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    for name in names:
        result.graph.initializer.append(numpy_helper.from_array(np.asarray(given[name]), name))
    return result


def prepend_linear(
    model: onnx.ModelProto, name: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator
) -> None:
    """Feed an input from a linear layer along one axis, which reads a new input."""
    (value,) = [one for one in model.graph.input if one.name == name]
    source = f"{name}/source"
    wide = [WIDTH if i == axis else n for i, n in enumerate(shape)]
    value.CopyFrom(helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, wide))
    nodes = linear(model, source, name, axis, len(shape), (WIDTH, shape[axis]), rng)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def append_linear(
    model: onnx.ModelProto, name: str, shape: tuple[int, ...], axis: int, rng: np.random.Generator
) -> None:
    """Return a linear layer of an output instead of the output."""
    (value,) = [one for one in model.graph.output if one.name == name]
    result = f"{name}/result"
    wide = [WIDTH if i == axis else n for i, n in enumerate(shape)]
    value.CopyFrom(helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, wide))
    model.graph.node.extend(
        linear(model, name, result, axis, len(shape), (shape[axis], WIDTH), rng)
    )


def linear(
    model: onnx.ModelProto,
    source: str,
    result: str,
    axis: int,
    rank: int,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> list[onnx.NodeProto]:
    order = [i for i in range(rank) if i != axis] + [axis]
    weight, turned, made = (f"{source}/{part}" for part in ("weight", "turned", "made"))
    values = (rng.standard_normal(shape) / np.sqrt(max(shape[0], 1))).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, weight))
    return [
        helper.make_node("Transpose", [source], [turned], perm=order),
        helper.make_node("MatMul", [turned, weight], [made]),
        helper.make_node("Transpose", [made], [result], perm=np.argsort(order).tolist()),
    ]


def distinct(models: Iterator[Named]) -> Iterator[Named]:
    """Leave out models that differ from an earlier one in their names only."""
    seen: set[bytes] = set()
    for name, model in models:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        bare.producer_name = bare.graph.name = ""
        key = bare.SerializeToString(deterministic=True)
        if key not in seen:
            seen.add(key)
            yield name, model


def outcome(model: onnx.ModelProto) -> str:
    """How pruning ends: a refusal, `pruned`, or what is wrong with it."""
    try:
        result = onnxprune.prune(model, target={"channels": 0.5}, threads=1, measure_latency=False)
    except onnxprune.OnnxPruneError as error:
        return type(error).__name__
    except Exception as error:
        return f"a {type(error).__name__}: {error}"
    certificate = result.report.certificate
    if not certificate.holds:
        return f"certificate {certificate.error}"
    assert isinstance(result.model, onnx.ModelProto)
    feed = made_up(model)
    apart = largest_difference(
        run(zeroed_by_contract(model, cut_of(model, result.plan)), feed), run(result.model, feed)
    )
    return "pruned" if apart <= certificate.tolerance else f"a result that is wrong by {apart}"


def cut_of(model: onnx.ModelProto, plan: onnxprune.Plan) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Kept indices of everything that is cut, constants that divide left out."""
    divisors = {n.input[1] for n in model.graph.node if n.op_type in ("Div", "Mod", "Pow")}
    return {
        name: {axis: np.array(kept) for axis, kept in axes.items()}
        for name, axes in plan.initializers.items()
        if name not in divisors
    }


def made_up(model: onnx.ModelProto) -> Arrays:
    """Inputs that the pruning has not seen."""
    rng = np.random.default_rng(99)
    given = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name not in given:
            tensor = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
            feed[value.name] = np.asarray(np.abs(rng.standard_normal(shape)), dtype)
    return feed


def check(models: Iterator[Named]) -> Counter[str]:
    """Prune all; nothing may end otherwise than as promised."""
    outcomes = {name: outcome(model) for name, model in distinct(models)}
    refusals = {"pruned", "InputError", "NothingPrunable", "TargetUnreachable"}
    counts = Counter(outcomes.values())
    assert refusals.issuperset(counts), (
        counts,
        {name: one for name, one in outcomes.items() if one not in refusals},
    )
    return counts


def test_stored_models() -> None:
    counts = check(stored_models())
    assert counts.total() > 200, counts


def test_operators_as_they_are() -> None:
    counts = check(node_models())
    assert counts.total() > 1500, counts


def test_operators_with_weights() -> None:
    counts = check(weighted_models())
    assert counts.total() > 1000, counts


@pytest.mark.parametrize("same_axis", [True, False])
def test_operators_between_linear_layers(same_axis: bool) -> None:
    counts = check(linked_models(same_axis=same_axis))
    assert counts["pruned"] > 200, counts
