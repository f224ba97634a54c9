"""Detection heads lose the rows of the classes that are not wanted; their boxes stay."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers.oracle import feed, outputs
from helpers.reducing import Weights, changed, declared, graph, metadata, shapes, weights
from numpy.typing import NDArray

from onnxprune.errors import InputError, NothingPrunable
from onnxprune.passes.keep_classes import KEPT_CLASSES, KeepClasses

KEPT = [1, 4, 5]
IMAGE = "(float[N, 4, 5, 5] x)"


def head(
    body: str, out: str, values: Weights | None = None, **shapes_: tuple[int, ...]
) -> onnx.ModelProto:
    """A 5 x 5 map of four features, and what a head makes of it."""
    constants = {
        "flat": np.array([0, 0, -1], np.int64),
        "anchors": np.array([0, 3, 11, 25], np.int64),
        "rows": np.array([0, -1, 11], np.int64),
        "stride": np.array(8, np.float32),
    }
    every = {**weights(**shapes_), **constants, **(values or {})}
    used = {name: array for name, array in every.items() if name in body.replace(",", " ").split()}
    return graph(f"{IMAGE} => ({out})", body, used)


def anchor_free(boxes: int = 4) -> onnx.ModelProto:
    """As YOLOv8 has it: boxes and six class scores, joined, for 25 places."""
    body = """b = Conv (x, wb ) c = Conv (x, wc ) fb = Reshape (b , flat ) fc = Reshape (c , flat )
               d = Mul (fb , stride ) s = Sigmoid (fc) y = Concat <axis = 1> (d, s)"""
    return head(body, f"float[N, {boxes + 6}, 25] y", wb=(boxes, 4, 1, 1), wc=(6, 4, 1, 1))


def with_objectness() -> onnx.ModelProto:
    """As YOLOv5 has it: 3 anchors with box, objectness and six classes each in one convolution."""
    body = """c = Conv (x, w ) r = Reshape (c, anchors ) t = Transpose <perm = [0, 1, 3, 2]> (r)
              p = Sigmoid (t) xy, wh, rest = Split <axis = 3> (p, split ) d = Mul (xy, stride )
              j = Concat <axis = 3> (d, wh, rest) y = Reshape (j, rows )"""
    values = {"split": np.array([2, 2, 7], np.int64)}
    return head(body, "float[N, 75, 11] y", values, w=(33, 4, 1, 1))


def taken(proto: onnx.ModelProto, axis: int, first: int) -> NDArray[np.generic]:
    """The original's output without the classes that are not kept."""
    whole = outputs(proto, feed(proto, 3))["y"]
    rest = np.arange(first + 6, whole.shape[axis])
    return whole.take([*range(first), *(first + one for one in KEPT), *rest], axis)


def test_joined_boxes_stay_when_class_rows_go() -> None:
    proto = anchor_free()
    result = changed(KeepClasses(KEPT, classes=6), proto)
    assert shapes(result)["wb"] == (4, 4, 1, 1)
    assert shapes(result)["wc"] == (3, 4, 1, 1)
    assert declared(result) == {"y": ["N", 7, 25]}
    assert json.loads(metadata(result)[KEPT_CLASSES]) == KEPT
    got = outputs(result, feed(proto, 3))["y"]
    np.testing.assert_allclose(got, taken(proto, 1, 4), rtol=1e-5)


def test_number_of_classes_comes_from_their_names() -> None:
    proto = anchor_free()
    entry = proto.metadata_props.add()
    entry.key, entry.value = "names", str(dict(enumerate("abcdef")))
    assert declared(changed(KeepClasses("b,f"), proto)) == {"y": ["N", 6, 25]}


def test_as_many_box_entries_as_classes_are_ambiguous() -> None:
    proto = anchor_free(boxes=6)
    with pytest.raises(
        InputError, match=r"begin at \[0, 6\]; say which part is meant with first=N"
    ):
        changed(KeepClasses(KEPT, classes=6), proto)
    result = changed(KeepClasses(KEPT, classes=6, first=6), proto)
    got = outputs(result, feed(proto, 3))["y"]
    np.testing.assert_allclose(got, taken(proto, 1, 6), rtol=1e-5)


def test_classes_behind_objectness_need_their_position() -> None:
    proto = with_objectness()
    with pytest.raises(InputError, match="set first=N, the position of class 0"):
        changed(KeepClasses(KEPT, classes=6), proto)
    result = changed(KeepClasses(KEPT, classes=6, first=5), proto)
    assert shapes(result)["w"] == (24, 4, 1, 1)
    assert declared(result) == {"y": ["N", 75, 8]}
    got = outputs(result, feed(proto, 3))["y"]
    np.testing.assert_allclose(got, taken(proto, 2, 5), rtol=1e-5)


def test_levels_are_joined_before_or_behind_boxes_and_classes() -> None:
    """As YOLOX has it: box, objectness, classes; two levels; classes last."""
    level = """b{0} = Conv (x{0}, wb ) o{0} = Conv (x{0}, wo ) c{0} = Conv (x{0}, wc )
               j{0} = Concat <axis = 1> (b{0}, o{0}, c{0}) f{0} = Reshape (j{0}, flat )"""
    body = f"""x1 = Identity (x) x2 = MaxPool <kernel_shape = [2, 2]> (x)
               {level.format(1)} {level.format(2)}
               a = Concat <axis = 2> (f1, f2) y = Transpose <perm = [0, 2, 1]> (a)"""
    kernels = {"wb": (4, 4, 1, 1), "wo": (1, 4, 1, 1), "wc": (6, 4, 1, 1)}
    proto = head(body, "float[N, 41, 11] y", **kernels)
    result = changed(KeepClasses(KEPT, classes=6), proto)
    assert shapes(result)["wc"] == (3, 4, 1, 1)
    got = outputs(result, feed(proto, 3))["y"]
    np.testing.assert_allclose(got, taken(proto, 2, 5), rtol=1e-5)


def test_other_outputs_lose_what_is_made_of_the_same_weights() -> None:
    body = """b = Conv (x, wb ) c = Conv (x, wc ) raw = Concat <axis = 1> (b, c)
              s = Sigmoid (c) y = Reshape (s, flat )"""
    out = "float[N, 6, 25] y, float[N, 10, 5, 5] raw"
    proto = head(body, out, wb=(4, 4, 1, 1), wc=(6, 4, 1, 1))
    result = changed(KeepClasses(KEPT, classes=6, outputs=["y"]), proto)
    assert declared(result) == {"y": ["N", 3, 25], "raw": ["N", 7, 5, 5]}
    inputs = feed(proto, 3)
    whole = outputs(proto, inputs)["raw"]
    np.testing.assert_allclose(
        outputs(result, inputs)["raw"], whole[:, [0, 1, 2, 3, 5, 8, 9]], rtol=1e-5
    )


def test_boxes_and_scores_in_outputs_of_their_own() -> None:
    """As SSD has it: scores [N, A, C] through a Softmax, boxes [N, A, 4]."""
    body = """b = Conv (x, wb ) c = Conv (x, wc ) fb = Reshape (b, flat ) fc = Reshape (c, flat )
              boxes = Transpose <perm = [0, 2, 1]> (fb) t = Transpose <perm = [0, 2, 1]> (fc)
              y = Softmax <axis = 2> (t)"""
    out = "float[N, 25, 4] boxes, float[N, 25, 6] y"
    proto = head(body, out, wb=(4, 4, 1, 1), wc=(6, 4, 1, 1))
    with pytest.raises(InputError, match="set classes=N"):
        changed(KeepClasses(KEPT), proto)
    result = changed(KeepClasses(KEPT, classes=6), proto)
    inputs = feed(proto, 3)
    before, after = outputs(proto, inputs), outputs(result, inputs)
    np.testing.assert_array_equal(after["boxes"], before["boxes"])
    part = before["y"][:, :, KEPT]
    np.testing.assert_allclose(after["y"], part / part.sum(axis=2, keepdims=True), rtol=1e-5)


def test_best_score_and_class_of_every_anchor() -> None:
    body = """c = Conv (x, w ) r = Reshape (c, anchors ) t = Transpose <perm = [0, 1, 3, 2]> (r)
              f = Reshape (t, rows ) s = Sigmoid (f)
              score = ReduceMax <axes = [2], keepdims = 0> (s)
              y = ArgMax <axis = 2, keepdims = 0> (s) all = Identity (s)"""
    out = "float[N, 75] score, int64[N, 75] y, float[N, 75, 11] all"
    proto = head(body, out, w=(33, 4, 1, 1))
    result = changed(KeepClasses(KEPT, classes=11), proto)
    inputs = feed(proto, 3)
    scores, after = outputs(proto, inputs)["all"][:, :, KEPT], outputs(result, inputs)
    np.testing.assert_allclose(after["score"], scores.max(axis=2), rtol=1e-5)
    np.testing.assert_array_equal(after["y"], np.array(KEPT)[scores.argmax(axis=2)])


def test_best_of_all_places_and_classes_together() -> None:
    """As DETR has it: the k best of places x classes; both are worked out from the position."""
    body = """c = Conv (x, w ) f = Reshape (c, flat ) t = Transpose <perm = [0, 2, 1]> (f)
              s = Sigmoid (t) a = Reshape (s, line ) v, i = TopK (a, k ) y = Mod (i, six )
              place = Div (i, six ) all = Identity (s)"""
    values = {
        "line": np.array([0, -1], np.int64),
        "k": np.array([7], np.int64),
        "six": np.array(6, np.int64),
    }
    out = "float[N, 7] v, int64[N, 7] y, int64[N, 7] place, float[N, 25, 6] all"
    proto = head(body, out, values, w=(6, 4, 1, 1))
    result = changed(KeepClasses(KEPT, classes=6), proto)
    inputs = feed(proto, 3)
    scores, after = outputs(proto, inputs)["all"].copy(), outputs(result, inputs)
    scores[:, :, [0, 2, 3]] = -1
    order = np.argsort(-scores.reshape(3, -1), axis=1)[:, :7]
    np.testing.assert_array_equal(after["y"], order % 6)
    np.testing.assert_array_equal(after["place"], order // 6)


def suppression(tail: str = "", threshold: str = "") -> onnx.ModelProto:
    """Boxes and scores of 25 places through NonMaxSuppression: rows of [sample, class, box]."""
    body = f"""b = Conv (x, wb ) c = Conv (x, wc ) fb = Reshape (b, flat ) fc = Reshape (c, flat )
              boxes = Transpose <perm = [0, 2, 1]> (fb) s = Sigmoid (fc)
              y = NonMaxSuppression (boxes, s, k , overlap {threshold}) {tail}"""
    values = {
        "k": np.array([3], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.6], np.float32),
        "class": np.array([1], np.int64),
    }
    out = "int64[M, 3] y" + (", float[M] best" if tail else "")
    return head(body, out, values, wb=(4, 4, 1, 1), wc=(6, 4, 1, 1))


@pytest.mark.parametrize("threshold", ["", ", least "])
def test_suppression_goes_on_naming_classes_by_their_old_numbers(threshold: str) -> None:
    proto = suppression(threshold=threshold)
    result = changed(KeepClasses(KEPT, classes=6, first=None), proto)
    inputs = feed(proto, 3)
    rows = outputs(proto, inputs)["y"]
    wanted = rows[np.isin(rows[:, 1], KEPT)]
    assert len(wanted) > 5
    np.testing.assert_array_equal(outputs(result, inputs)["y"], wanted)


def test_scores_looked_up_by_class_behind_suppression_are_refused() -> None:
    proto = suppression("best = GatherND (s, y)")
    with pytest.raises(NothingPrunable, match="GatherND"):
        changed(KeepClasses(KEPT, classes=6), proto)


def test_an_output_that_only_happens_to_be_as_long_is_named_away() -> None:
    """Six features that are normalised are no classes."""
    proto = graph(
        "(float[N, 4] x) => (float[N, 6] y, float[N, 6] z)",
        "y = MatMul (x, w) h = MatMul (x, v) z = LayerNormalization (h, s)",
        weights(w=(4, 6), v=(4, 6), s=(6,)),
    )
    with pytest.raises(NothingPrunable, match=r"'z' cannot be removed.*name it with outputs="):
        changed(KeepClasses(KEPT), proto)
    result = changed(KeepClasses(KEPT, outputs=["y"]), proto)
    assert declared(result) == {"y": ["N", 3], "z": ["N", 6]}


def test_unknown_output_is_named() -> None:
    with pytest.raises(InputError, match=r"no output 'z'; the outputs are \['y'\]"):
        changed(KeepClasses(KEPT, classes=6, outputs=["z"]), anchor_free())
