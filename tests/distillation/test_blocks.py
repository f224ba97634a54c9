"""Students that do not fit are trained block by block, on what the blocks before give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from onnxprune.calibration.context import RunContext
from onnxprune.calibration.samples import model_samples
from onnxprune.distillation.blocks import Block, Blocks
from onnxprune.distillation.distil import Distillation, Distilled, distil
from onnxprune.distillation.losses import Feature
from onnxprune.distillation.parameters import parameters_of
from onnxprune.model.execution import Execution
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.progress import silent
from onnxprune.verification.divergence import DivergenceEvaluator

WIDTH, HIDDEN = 8, 12
X = np.random.default_rng(5).standard_normal((160, WIDTH)).astype(np.float32)
SIGNATURE = "(float[N, 8] x) => (float[N, 3] y)"


def residual(blocks: int = 4, seed: int = 0, hidden: int = HIDDEN) -> onnx.ModelProto:
    """Blocks of two layers each, beside which what they read passes."""
    body, values, last = "s0 = MatMul(x, stem)", {"stem": (8, WIDTH), "head": (WIDTH, 3)}, "s0"
    for number in range(1, blocks + 1):
        body += f" h{number} = MatMul({last}, a{number}) r{number} = Relu(h{number})"
        body += f" g{number} = MatMul(r{number}, b{number}) s{number} = Add(g{number}, {last})"
        values |= {f"a{number}": (WIDTH, hidden), f"b{number}": (hidden, WIDTH)}
        last = f"s{number}"
    made = {name: 0.25 * value for name, value in weights(seed, **values).items()}
    return graph(SIGNATURE, f"{body} y = MatMul({last}, head)", made)


def damaged(proto: onnx.ModelProto, by: float = 0.3) -> onnx.ModelProto:
    """The same network with noise in its weights."""
    made, rng = onnx.ModelProto(), np.random.default_rng(3)
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > 1:
            noisy = array + by * array.std() * rng.standard_normal(array.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy.astype(array.dtype), tensor.name))
    return made


def cutter_of(proto: onnx.ModelProto, feed: Any, share: float = 0.5) -> Blocks:
    model = load(proto).model
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=2)(model)
    facts = observe(model, ONE_THREAD, np.random.default_rng(0), feed)
    return Blocks(model, parameters_of(model.graph), facts, share)


def cut(proto: onnx.ModelProto, features: str, limit: int = 1, feed: Any = None) -> list[Block]:
    cutter = cutter_of(proto, {"x": X[:2]} if feed is None else feed)
    return cutter.within(limit, [Feature(name) for name in features.split()])


def ends(blocks: list[Block]) -> list[str]:
    return [block.end for block in blocks]


def test_memory_is_that_of_weights_in_training_and_of_activations() -> None:
    body = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"
    proto = graph(SIGNATURE, body, weights(a=(8, 5), b=(5, 3)))
    of_weights, of_one_sample = 16 * (8 * 5 + 5 * 3), 4 * (5 + 5 + 3)
    assert cutter_of(proto, {"x": X[:2]}).bytes() == of_weights + of_one_sample
    assert cutter_of(proto, {"x": X[:2]}, 1.0).bytes() == of_weights + 2 * of_one_sample


def test_blocks_are_as_few_as_fit() -> None:
    proto, features = residual(4), "s1 s2 s3 s4"
    whole = cutter_of(proto, {"x": X[:2]}).bytes()
    assert ends(cut(proto, features, whole)) == [""]
    assert ends(cut(proto, features, 1)) == ["s1", "s2", "s3", "s4", ""]
    for limit in (whole // 2, whole // 3):
        blocks = cut(proto, features, limit)
        assert 1 < len(blocks) < 5
        starts = [block.start for block in blocks]
        assert starts == ["", *ends(blocks)[:-1]]
        found = [feature.name for block in blocks for feature in block.features]
        # nothing is compared behind the last cut but what lies there
        assert found == features.split()


def test_blocks_one_after_the_other_give_what_the_whole_gives() -> None:
    proto = residual(3)
    cutter = cutter_of(proto, {"x": X[:2]})
    wanted = Execution(load(proto).model, ONE_THREAD).run({"x": X})
    names = []
    for block in cutter.within(1, [Feature(name) for name in ("s1", "s2", "s3")]):
        feed = cutter.reader(block, {}, ONE_THREAD)({"x": X})
        made = Execution(block.model, ONE_THREAD).run(feed)
        names += parameters_of(block.model.graph)
    np.testing.assert_allclose(made["y"], wanted["y"], rtol=1e-4, atol=1e-5)
    assert sorted(names) == sorted(tensor.name for tensor in proto.graph.initializer)


def test_weights_before_a_block_are_the_tuned_ones() -> None:
    proto = residual(2)
    cutter = cutter_of(proto, {"x": X[:2]})
    _, second, _ = cutter.within(1, [Feature("s1"), Feature("s2")])
    plain, tuned = (
        cutter.reader(second, values, ONE_THREAD)({"x": X})["s1"]
        for values in ({}, {"stem": np.zeros((8, WIDTH), np.float32)})
    )
    assert np.abs(plain).max() > 0.1
    assert not tuned.any()


def test_a_tensor_that_something_passes_by_is_no_place_to_cut() -> None:
    body = (
        "h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) t = Relu(i) s = Add(t, r) y = MatMul(s, c)"
    )
    values = weights(a=(8, 6), b=(6, 6), c=(6, 3))
    # r goes on beside t
    assert ends(cut(graph(SIGNATURE, body, values), "r t s")) == ["r", "s", ""]


def test_an_output_on_the_way_is_no_place_to_cut_behind() -> None:
    body = "h = MatMul(x, a) r = Relu(h) z = Tanh(r) i = MatMul(r, b) t = Relu(i) y = MatMul(t, c)"
    values = weights(a=(8, 6), b=(6, 6), c=(6, 3))
    signature = "(float[N, 8] x) => (float[N, 3] y, float[N, 6] z)"
    assert ends(cut(graph(signature, body, values), "r t")) == ["r", ""]


def test_masks_are_computed_in_every_block() -> None:
    body = """m = Cast<to = 1>(mask) k = Unsqueeze(m, last) e = MatMul(x, a) f = Mul(e, k)
        h = MatMul(f, b) s = Add(h, f) g = Mul(s, k) i = MatMul(g, c) t = Add(i, g)
        o = Mul(t, k) y = MatMul(o, d)"""
    signature = "(float[N, L, 8] x, int64[N, L] mask) => (float[N, L, 3] y)"
    values = weights(a=(8, 6), b=(6, 6), c=(6, 6), d=(6, 3)) | {"last": np.array([2])}
    x = np.random.default_rng(5).standard_normal((2, 5, 8)).astype(np.float32)
    blocks = cut(graph(signature, body, values), "s t", feed={"x": x, "mask": np.ones((2, 5), int)})
    assert ends(blocks) == ["s", "t", ""]
    inputs = [{value.name for value in block.model.graph.inputs} for block in blocks]
    assert inputs == [{"x", "mask"}, {"s", "mask"}, {"t", "mask"}]
    # axes that vary are called what the inputs call them
    (start,) = [value for value in blocks[1].model.graph.inputs if value.name == "s"]
    assert start.shape is not None
    assert [str(getattr(dim, "value", dim)) for dim in start.shape] == ["N", "L", "6"]


def test_weights_that_several_blocks_read_stay() -> None:
    body = """h = MatMul(x, a) r = Relu(h) s = Add(r, h) i = MatMul(s, a) t = Relu(i)
        u = Add(t, s) y = MatMul(u, b)"""
    proto = graph(SIGNATURE, body, weights(a=(8, 8), b=(8, 3)))
    assert {block.fixed for block in cut(proto, "s u")} == {frozenset({"a"})}
    result = distilled(damaged(proto), proto, memory=1)
    assert set(result.moved) == {"b"}
    assert "trained apart" in result.frozen["a"]


def distilled(student: Any, teacher: Any, effort: Any = 12, **options: Any) -> Distilled:
    models = [load(each).model for each in (student, teacher)]
    progress = options.pop("progress", silent)
    labels = options.pop("labels", None)
    samples = model_samples({"x": X}, models[0], ONE_THREAD)
    context = RunContext(samples, labels, ONE_THREAD, progress=progress)
    return distil(models[0], models[1], Distillation(effort, **options), context)


def unseen(teacher: onnx.ModelProto) -> DivergenceEvaluator:
    x = np.random.default_rng(77).standard_normal((128, WIDTH)).astype(np.float32)
    return DivergenceEvaluator(load(teacher).model, [{"x": x}], ONE_THREAD)


def test_a_student_that_does_not_fit_comes_nearer_block_by_block() -> None:
    teacher = residual(4)
    student = damaged(teacher)
    result = distilled(student, teacher, memory=1)
    assert result.blocks == ("s1", "s2", "s3", "s4")
    assert any("5 blocks" in note for note in result.notes)
    whole = distilled(student, teacher)
    assert whole.blocks == ()
    assert not any("blocks" in note for note in whole.notes)
    before, after = (
        unseen(teacher).divergence(each) for each in (load(student).model, result.model)
    )
    assert after < 0.3 * before
    assert set(result.moved) == set(whole.moved)
    # one course: steps of all blocks counted together
    steps = [point.step for point in result.course.points]
    assert steps == sorted(set(steps))
    assert steps[-1] == result.steps
    assert result.course.points[0].held_out == whole.course.points[0].held_out
    best = min(result.course.points, key=lambda point: point.held_out)
    assert result.course.best == best.step


def test_labels_are_learnt_in_the_last_block() -> None:
    teacher = residual(2)
    labels = (X[:, 0] > 0).astype(np.int64)
    result = distilled(damaged(teacher), teacher, labels=labels, memory=1)
    assert result.learnt == ("teacher", "labels")
    assert result.blocks
    assert result.course.best > 0


def test_a_student_that_cannot_be_cut_is_trained_as_a_whole() -> None:
    def layers(seed: int) -> onnx.ModelProto:
        return graph(SIGNATURE, "h = MatMul(x, a) y = Tanh(h)", weights(seed, a=(8, 3)))

    result = distilled(layers(0), layers(1), memory=1)
    assert result.blocks == ()
    assert result.course.best > 0


def test_the_start_is_kept_where_no_block_gets_nearer() -> None:
    teacher = residual(2)
    result = distilled(teacher, teacher, memory=1)
    assert result.course.best == 0
    assert {
        v.name: v.const_value.numpy().tobytes()
        for v in load(teacher).model.graph.initializers.values()
        if v.const_value
    } == {
        v.name: v.const_value.numpy().tobytes()
        for v in result.model.graph.initializers.values()
        if v.const_value
    }


def stopping(count: int) -> Any:
    """Progress that is interrupted after so many steps of all blocks."""
    done = [0]

    def progress(items: Any, what: str, total: int | None = None) -> Any:
        for item in items:
            if what == "fine-tuning":
                done[0] += 1
                if done[0] > count:
                    raise KeyboardInterrupt
            yield item

    return progress


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_run_is_repeated_up_to_where_it_was_stopped(share: float) -> None:
    teacher = residual(2)
    student = damaged(teacher)
    whole = distilled(student, teacher, effort=6, memory=1)
    count = int(share * whole.steps)
    first = distilled(student, teacher, effort=6, memory=1, progress=stopping(count))
    assert (first.course.stopped is None) == (share == 1.0)
    if first.course.stopped is not None:
        assert 0 < first.course.best <= first.course.stopped <= count
    repeated = {"rate": first.course.rate, "until": first.course.best}
    again = distilled(student, teacher, effort=6, memory=1, **repeated)
    data = [ir.to_proto(each.model).SerializeToString() for each in (first, again)]
    assert data[0] == data[1]


def test_half_precision_and_batches_that_the_model_fixes() -> None:
    def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
        values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        body = " ".join(
            f"{node.output[0]} = {node.op_type}({', '.join(node.input)})"
            for node in proto.graph.node
        )
        halves = {name: value.astype(np.float16) for name, value in values.items()}
        return graph("(float16[4, 8] x) => (float16[4, 3] y)", body, halves)

    teacher = residual(2)
    models = [load(halved(each)).model for each in (damaged(teacher), teacher)]
    samples = model_samples({"x": X.astype(np.float16)}, models[0], ONE_THREAD)
    context = RunContext(samples, runtime=ONE_THREAD)
    result = distil(models[0], models[1], Distillation(6, memory=1), context)
    assert result.blocks == ("s1", "s2")
    assert result.course.best > 0
    kinds = {v.const_value.dtype for v in result.model.graph.initializers.values() if v.const_value}
    assert kinds == {ir.DataType.FLOAT16}
