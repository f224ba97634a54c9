"""A student comes nearer to its teacher, on samples that nobody trained on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD, parse
from helpers.reducing import graph, weights

import onnxprune
from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import model_samples
from onnxprune.distillation.distil import EFFORTS, Distillation, Distilled, distil
from onnxprune.errors import CalibrationError, InputError, NothingPrunable
from onnxprune.model.execution import Execution
from onnxprune.model.load import load
from onnxprune.verification.divergence import DivergenceEvaluator

Arrays = dict[str, np.ndarray]


def scaled(seed: int = 0, **shapes: tuple[int, ...]) -> Arrays:
    """Weights that keep activations at about their size."""
    made = weights(seed, **shapes)
    return {
        name: np.asarray(value / np.sqrt(max(np.prod(value.shape[1:]), 1)), np.float32)
        for name, value in made.items()
    }


def residual_network() -> onnx.ModelProto:
    """Two residual blocks of convolutions and a head of class scores."""
    body = """c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, v0) s0 = Relu(c0)
        c1 = Conv<pads = [1, 1, 1, 1]>(s0, w1, v1) r1 = Relu(c1)
        c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, v2) a1 = Add(c2, s0) s1 = Relu(a1)
        c3 = Conv<pads = [1, 1, 1, 1]>(s1, w3, v3) r2 = Relu(c3)
        c4 = Conv<pads = [1, 1, 1, 1]>(r2, w4, v4) a2 = Add(c4, s1) s2 = Relu(a2)
        p = GlobalAveragePool(s2) f = Flatten(p) y = Gemm<transB = 1>(f, head, bias)"""
    shapes: dict[str, tuple[int, ...]] = {"w0": (8, 3, 3, 3), "v0": (8,)}
    for first, second in ((1, 2), (3, 4)):
        shapes |= {f"w{first}": (16, 8, 3, 3), f"v{first}": (16,)}
        shapes |= {f"w{second}": (8, 16, 3, 3), f"v{second}": (8,)}
    made = scaled(**shapes, head=(5, 8), bias=(5,))
    made["head"] *= np.float32(8)
    return graph("(float[N, 3, 8, 8] x) => (float[N, 5] y)", body, made)


def transformer() -> onnx.ModelProto:
    """A block of attention and one of two layers, on tokens."""
    body = """e = Gather(table, x) n = LayerNormalization(e, g1, b1)
        q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) kt = Transpose<perm = [0, 2, 1]>(k)
        c = MatMul(q, kt) d = Mul(c, quarter) a = Softmax<axis = -1>(d) o = MatMul(a, v)
        p = MatMul(o, wo) s1 = Add(e, p) m = LayerNormalization(s1, g2, b2)
        h = MatMul(m, w1) hb = Add(h, v1) r = Relu(hb) t = MatMul(r, w2) tb = Add(t, v2)
        s2 = Add(s1, tb) y = MatMul(s2, head)"""
    linear = dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))
    made = scaled(**linear, w1=(16, 32), w2=(32, 16), v1=(32,), v2=(16,), head=(16, 6))
    made |= {"table": weights(3, t=(20, 16))["t"].astype(np.float32)}
    made |= {name: np.ones(16, np.float32) for name in ("g1", "g2")}
    made |= {name: np.full(16, 0.1, np.float32) for name in ("b1", "b2")}
    made |= {"quarter": np.array(0.25, np.float32)}
    made["head"] *= np.float32(2)
    return graph("(int64[N, 6] x) => (float[N, 6, 6] y)", body, made)


def recurrent_network() -> onnx.ModelProto:
    """A GRU and a linear layer on its last state."""
    body = """t = Transpose<perm = [1, 0, 2]>(x)
        all, last = GRU<hidden_size = 12, linear_before_reset = 1>(t, w, r, b)
        s = Squeeze(last, zero) y = MatMul(s, head)"""
    made: dict[str, Any] = scaled(w=(1, 36, 4), r=(1, 36, 12), b=(1, 72), head=(12, 3))
    made["w"] *= np.float32(8)
    made["r"] *= np.float32(12)
    return graph("(float[N, 5, 4] x) => (float[N, 3] y)", body, made | {"zero": np.array([0])})


def normal(*shape: int) -> Arrays:
    return {"x": np.random.default_rng(9).standard_normal(shape).astype(np.float32)}


NETWORKS = {
    "residual": (residual_network, normal(160, 3, 8, 8)),
    "transformer": (transformer, {"x": np.random.default_rng(9).integers(0, 20, (160, 6))}),
    "recurrent": (recurrent_network, normal(160, 5, 4)),
}


def context_of(model: ir.Model, samples: Any, **options: Any) -> RunContext:
    return RunContext(model_samples(samples, model, ONE_THREAD), runtime=ONE_THREAD, **options)


def distilled(
    student: Any, teacher: Any, samples: Any, effort: Any = 6, **options: Any
) -> Distilled:
    models = [load(each).model for each in (student, teacher)]
    context = context_of(models[0], samples)
    return distil(models[0], models[1], Distillation(effort, **options), context)


def unseen(samples: Arrays) -> list[Arrays]:
    """Others of the same kind."""
    rng = np.random.default_rng(77)
    x = samples["x"]
    if x.dtype.kind == "i":
        return [{"x": rng.integers(0, 20, (64, *x.shape[1:]))}]
    return [{"x": rng.standard_normal((64, *x.shape[1:])).astype(np.float32)}]


def pruned(proto: onnx.ModelProto, samples: Any) -> onnx.ModelProto:
    """A model that lost much and was not made up for."""
    result = onnxprune.prune(
        proto,
        calibration=samples,
        target={"macs": 0.6},
        compensate="none",
        allocation="uniform",
        finetune=False,
        force=True,
        measure_latency=False,
        threads=1,
    )
    assert isinstance(result.model, onnx.ModelProto)
    return result.model


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pruned_model_comes_nearer_to_its_original(network: str) -> None:
    made, samples = NETWORKS[network]
    original = made()
    small = pruned(original, samples)
    result = distilled(small, original, samples, effort=30)
    teacher = load(original).model
    evaluator = DivergenceEvaluator(teacher, unseen(samples), ONE_THREAD)
    before, after = (evaluator.divergence(each) for each in (load(small).model, result.model))
    assert after < 0.7 * before
    assert result.course.best > 0
    assert all(moved > 0 for moved in result.moved.values())
    # a model like the one before, with other weights
    trained = ir.to_proto(result.model)
    onnx.checker.check_model(trained, full_check=True)
    assert [node.op_type for node in trained.graph.node] == [
        node.op_type for node in small.graph.node
    ]


def test_the_student_itself_is_not_changed() -> None:
    made, samples = NETWORKS["recurrent"]
    student, teacher = (load(each).model for each in (pruned(made(), samples), made()))
    before = [ir.to_proto(each).SerializeToString() for each in (student, teacher)]
    distil(student, teacher, Distillation(2), context_of(student, samples))
    assert [ir.to_proto(each).SerializeToString() for each in (student, teacher)] == before


SIGNATURE, BODY = (
    "(float[N, 8] x) => (float[N, 3] y)",
    "h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d)",
)


def layers(width: int = 6, seed: int = 0, factor: float = 0.3) -> onnx.ModelProto:
    made = weights(seed, a=(8, width), b=(width,), c=(width, 3), d=(3,))
    return graph(SIGNATURE, BODY, {name: factor * value for name, value in made.items()})


def test_a_teacher_that_names_its_tensors_otherwise() -> None:
    body = "h = Gemm(x, a, b) r = Relu(h) s = Gemm(r, c, d) y = Softmax(s)"
    student, teacher = (
        graph(SIGNATURE, text, weights(seed, a=(8, 6), b=(6,), c=(6, 3), d=(3,)))
        for seed, text in enumerate(
            (body, body.replace("s =", "scores =").replace("(s)", "(scores)"))
        )
    )
    result = distilled(student, teacher, normal(96, 8))
    assert result.course.best > 0


def test_half_precision_is_trained_in_single_and_written_in_half() -> None:
    def half(seed: int) -> onnx.ModelProto:
        made = weights(seed, a=(8, 6), c=(6, 3))
        values = {name: (0.3 * value).astype(np.float16) for name, value in made.items()}
        signature = SIGNATURE.replace("float", "float16")
        return graph(signature, "h = MatMul(x, a) r = Relu(h) y = MatMul(r, c)", values)

    samples = {"x": normal(96, 8)["x"].astype(np.float16)}
    result = distilled(half(0), half(1), samples, effort=20)
    assert result.course.best > 0
    kinds = {v.const_value.dtype for v in result.model.graph.initializers.values() if v.const_value}
    assert kinds == {ir.DataType.FLOAT16}
    assert Execution(result.model, ONE_THREAD).run(samples)["y"].dtype == np.float16


def test_weights_without_a_gradient_stay_and_are_named() -> None:
    # no gradient passes a rounding
    body = "h = Gemm(x, a, b) r = Round(h) y = Gemm(r, c, d)"
    made = {n: 0.5 * v for n, v in weights(0, a=(8, 6), b=(6,), c=(6, 3), d=(3,)).items()}
    student = graph(SIGNATURE, body, made)
    result = distilled(student, layers(), normal(96, 8))
    assert set(result.moved) <= {"c", "d"}
    frozen = {"a", "b"} - set(result.moved)
    assert frozen == {"a", "b"}
    after = {
        i.name: onnx.numpy_helper.to_array(i) for i in ir.to_proto(result.model).graph.initializer
    }
    assert np.array_equal(after["a"], made["a"].astype(np.float32))


def test_same_seed_same_bytes_whatever_ran_before() -> None:
    student, teacher = (load(each).model for each in (layers(6), layers(12, seed=1)))
    samples = normal(96, 8)
    made = []
    for seed in (0, 0, 1):
        context = context_of(student, samples, seed=seed)
        made.append(distil(student, teacher, Distillation(4), context).model)
    data = [ir.to_proto(each).SerializeToString() for each in made]
    assert data[0] == data[1] != data[2]


def test_a_run_is_repeated_from_its_rate_and_best_step() -> None:
    student, teacher = layers(6), layers(12, seed=1)
    samples = normal(96, 8)
    first = distilled(student, teacher, samples)
    again = distilled(student, teacher, samples, rate=first.course.rate, until=first.course.best)
    assert not again.course.probes
    data = [ir.to_proto(each.model).SerializeToString() for each in (first, again)]
    assert data[0] == data[1]


def test_effort_is_counted_in_passes_and_multiplications() -> None:
    low, normal_, high = (EFFORTS[name] for name in ("low", "normal", "high"))
    for a_pass, macs in itertools.product((4, 64), (1e3, 1e9)):
        steps = [effort.steps_for(a_pass, macs) for effort in (low, normal_, high)]
        assert steps == sorted(steps)
        # no more where a step takes longer
        assert all(
            effort.steps_for(a_pass, 1e6 * macs) <= count
            for effort, count in zip((low, normal_, high), steps, strict=True)
        )
    assert low.steps_for(4, 1e30) >= 1
    epochs = distilled(layers(6), layers(12, seed=1), normal(96, 8), effort=3)
    assert epochs.steps == 3 * (epochs.samples // epochs.batch)


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [(None, InputError, "give --calibration"), (normal(3, 8), CalibrationError, "too few samples")],
)
def test_samples_that_are_missing_or_too_few(samples: Any, error: Any, words: str) -> None:
    student = load(layers()).model
    context = RunContext(runtime=ONE_THREAD)
    if samples is not None:
        context = replace(context, samples=model_samples(samples, student, ONE_THREAD))
    with pytest.raises(error, match=words):
        distil(student, load(layers(12)).model, Distillation(1), context)


def test_a_model_without_weights_is_refused() -> None:
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 8] y) '
        "{ y = Relu(x) }"
    )
    with pytest.raises(NothingPrunable, match="nothing can be fine-tuned"):
        distilled(proto, proto, normal(16, 8))
