"""What nodes say about sizes follows the cut, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.oracle import Traced, check_surgery, parse, random_removal, traced
from onnx import numpy_helper

from onnxprune.coupling.cut import CutError

CHANNELS = {"a": (4, 8)}


def network(body: str, opset: int = 17, width: int = 8, **values: Any) -> Traced:
    """From h [N, 8], made by `a`, to t [N, width], read by `b`."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"a": (4, 8), "b": (width, 3)}.items()
    }
    given = {name: np.asarray(value) for name, value in values.items()}
    text = (
        f'<ir_version: 8, opset_import: ["": {opset}]> net (float[N, 4] x) => (float[N, 3] y) '
        f"{{ h = MatMul(x, a) {body} y = MatMul(t, b) }}"
    )
    return traced(parse(text, weights | given))


def without(subject: Traced, *channels: int) -> onnx.ModelProto:
    """The model after these channels of h are gone, checked and judged."""
    dead = subject.closed(subject.units("a", 1)[list(channels)].tolist(), same_positions=False)
    assert check_surgery(subject, dead) > 0
    return subject.sliced(dead)


def node(proto: onnx.ModelProto, kind: str, number: int = 0) -> onnx.NodeProto:
    return [one for one in proto.graph.node if one.op_type == kind][number]


def literal(proto: onnx.ModelProto, one: onnx.NodeProto, slot: int) -> list[int]:
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"}
    array = numpy_helper.to_array(tensors[one.input[slot]])
    found: list[int] = array.ravel().tolist()
    return found


def attribute(one: onnx.NodeProto, name: str) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in one.attribute if a.name == name), None)


JOINED = "t = Concat<axis=1>(v, u)"


def test_split_without_sizes_gets_them_when_parts_differ() -> None:
    proto = without(network(f"u, v = Split<axis=1>(h) {JOINED}", 13), 0, 1, 5)
    assert literal(proto, node(proto, "Split"), 1) == [2, 3]


def test_split_that_stays_even_is_left_alone() -> None:
    proto = without(network(f"u, v = Split<axis=1>(h) {JOINED}", 13), 1, 5)
    assert list(node(proto, "Split").input) == ["h"]


@pytest.mark.parametrize(("channel", "sizes"), [(0, [3, 4]), (7, [4, 3])])
def test_split_into_nearly_equal_parts(channel: int, sizes: list[int]) -> None:
    """Only from opset 18 on may the last of implied parts be smaller."""
    proto = without(network(f"u, v = Split<axis=1>(h) {JOINED}", 13), channel)
    assert literal(proto, node(proto, "Split"), 1) == sizes


def test_split_by_number_of_outputs_gets_sizes_when_parts_differ() -> None:
    proto = without(network(f"u, v = Split<axis=1, num_outputs=2>(h) {JOINED}", 18), 0)
    split = node(proto, "Split")
    assert (literal(proto, split, 1), attribute(split, "num_outputs")) == ([3, 4], None)


def test_split_by_attribute_keeps_an_attribute() -> None:
    proto = without(network(f"u, v = Split<axis=1, split=[3, 5]>(h) {JOINED}", 11), 0, 4)
    assert attribute(node(proto, "Split"), "split") == [2, 4]


def test_split_by_input_gets_a_new_input() -> None:
    subject = network(f"u, v = Split<axis=1>(h, s) {JOINED}", 13, s=[3, 5])
    proto = without(subject, 0, 4, 5)
    assert literal(proto, node(proto, "Split"), 1) == [2, 3]


def test_split_by_computed_sizes_is_overruled() -> None:
    body = f"p = Shape<start=1>(x) s = Concat<axis=0>(p, p) u, v = Split<axis=1>(h, s) {JOINED}"
    proto = without(network(body), 0)
    assert node(proto, "Split").input[1] == node(proto, "Where").output[0]


def test_split_that_computes_its_sizes_from_the_cut_tensor_is_left_alone() -> None:
    body = (
        "p = Shape<start=1>(h) two = Constant<value=int64[1]{2}>() q = Div(p, two) "
        f"s = Concat<axis=0>(q, q) u, v = Split<axis=1>(h, s) {JOINED}"
    )
    proto = without(network(body), 0, 7)
    assert node(proto, "Split").input[1] == "s"


def test_slice_bounds_become_ranks() -> None:
    subject = network("t = Slice(h, s, e, i)", width=4, s=[2], e=[6], i=[1])
    one = node(proto := without(subject, 0, 3), "Slice")
    assert [literal(proto, one, slot) for slot in (1, 2, 3)] == [[1], [4], [1]]


def test_slice_that_still_takes_the_right_part_is_left_alone() -> None:
    subject = network("t = Slice(h, s, e, i)", width=6, s=[2], e=[2**63 - 1], i=[1])
    proto = without(subject, 3)
    assert list(node(proto, "Slice").input) == ["h", "s", "e", "i"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_reversing_slice_runs_off_the_front(dtype: type) -> None:
    given = {k: np.array([v], dtype) for k, v in {"s": 4, "e": -100, "i": 1, "d": -1}.items()}
    subject = network("t = Slice(h, s, e, i, d)", width=5, **given)
    one = node(proto := without(subject, 1, 2), "Slice")
    assert literal(proto, one, 1) == [2]
    assert literal(proto, one, 2)[0] < -100


def test_slice_by_attribute_keeps_attributes() -> None:
    subject = network("t = Slice<axes=[1], starts=[2], ends=[6]>(h)", 9, width=4)
    one = node(without(subject, 0, 3), "Slice")
    assert (attribute(one, "starts"), attribute(one, "ends")) == ([1], [4])


@pytest.mark.parametrize("axes", [[1, 2], [2, 1]])
@pytest.mark.parametrize(
    ("starts", "ends", "width"), [((1, 1), (2, 3), 2), ((0, 0), (1, 3), 3), ((1, 2), (2, 4), 2)]
)
def test_slice_over_two_axes_of_a_joint_label(
    axes: list[int], starts: tuple[int, int], ends: tuple[int, int], width: int
) -> None:
    """Two heads of four dims: those outside of the slice may keep other dims."""
    subject = network(
        "r = Reshape(h, apart) u = Slice(r, s, e, i) t = Reshape(u, flat)",
        width=width,
        apart=[0, 2, 4],
        flat=[0, -1],
        s=[starts[axis - 1] for axis in axes],
        e=[ends[axis - 1] for axis in axes],
        i=axes,
    )
    for seed in range(8):
        check_surgery(subject, random_removal(subject, 0.5, seed))


def test_gather_indices_become_ranks() -> None:
    subject = network("t = Gather<axis=1>(h, i)", width=5, i=[7, 0, -2, 3, 3])
    proto = without(subject, 0, 5)
    assert literal(proto, node(proto, "Gather"), 1) == [5, 4, 2, 2]


def test_gather_nd_indices_become_ranks() -> None:
    body = "q = Transpose(h) r = GatherND(q, i) t = Transpose(r)"
    subject = network(body, width=3, i=[[5], [0], [2]])
    proto = without(subject, 0, 1)
    assert literal(proto, node(proto, "GatherND"), 1) == [3, 0]


def test_pad_adds_as_many_entries_as_are_left_of_them() -> None:
    subject = network("t = Pad(h, p)", width=11, p=[0, 1, 0, 2])
    added = subject.units("b", 0)[[0, 9]].tolist()
    dead = subject.closed([*added, int(subject.units("a", 1)[3])])
    check_surgery(subject, dead)
    proto = subject.sliced(dead)
    assert literal(proto, node(proto, "Pad"), 1) == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["Tile", "Expand"])
def test_what_is_spread_over_removed_channels_is_spread_less(kind: str) -> None:
    subject = network(f"e = {kind}(c, s) t = Sub(h, e)", s=[1, 8], c=np.ones((1, 1), np.float32))
    proto = without(subject, 0, 3)
    assert literal(proto, node(proto, kind), 1) == [1, 6]


def test_constant_of_shape_is_filled_less() -> None:
    proto = without(network("z = ConstantOfShape(s) t = Sub(h, z)", s=[1, 8]), 2)
    assert literal(proto, node(proto, "ConstantOfShape"), 0) == [1, 7]


RESHAPED = "u = Reshape(h, s) v = Relu(u) t = Reshape(v, z)"


def test_reshape_changes_wrong_entries_only() -> None:
    proto = without(network(RESHAPED, s=[-1, 2, 4], z=[0, -1]), 0, 4)
    assert literal(proto, node(proto, "Reshape"), 1) == [-1, 2, 3]
    assert node(proto, "Reshape", 1).input[1] == "z"


def test_a_literal_shared_between_nodes_is_copied_on_write() -> None:
    body = (
        "u = Reshape(h, s) t = Flatten(u) w = MatMul(x, c) v = Reshape(w, s) "
        "m = ReduceMean<axes=[1, 2], keepdims=0>(v)"
    )
    subject = network(body, s=[-1, 2, 4], c=np.ones((4, 8), np.float32))
    seeds = subject.units("a", 1)[[0, 4]].tolist()
    proto = subject.sliced(subject.closed(seeds))
    assert literal(proto, node(proto, "Reshape"), 1) == [-1, 2, 3]
    assert literal(proto, node(proto, "Reshape", 1), 1) == [-1, 2, 4]


def test_the_same_literal_in_two_slots_is_changed_in_the_slot_that_needs_it() -> None:
    """The literal is the start of the Slice, its axis and its step."""
    subject = network("t = Slice(h, i, e, i, i)", width=7, e=[8], i=[1])
    proto = without(subject, 0, 5)
    assert [literal(proto, node(proto, "Slice"), slot) for slot in (1, 3, 4)] == [[0], [1], [1]]


COMPUTED = "p = Shape<end=1>(x) k = Constant<value=int64[1]{8}>() z = Concat<axis=0>(p, k)"


def test_a_computed_target_is_overruled_where_it_is_wrong() -> None:
    proto = without(network(f"{COMPUTED} u = Unsqueeze(h, i) t = Reshape(u, z)", i=[1]), 5)
    where = node(proto, "Where")
    assert node(proto, "Reshape").input[1] == where.output[0]
    assert literal(proto, where, 0) == [False, True]
    assert (literal(proto, where, 1)[1], where.input[2]) == (7, "z")


FROM_DATA = (
    "o = ArgMax<axis=1, keepdims=0>(x) q = Equal(o, o) c = Cast<to=7>(q) "
    "p = ReduceSum<keepdims=1>(c) k = Constant<value=int64[1]{8}>() z = Concat<axis=0>(p, k)"
)


def test_a_target_that_depends_on_data_is_overruled_where_an_axis_is_passed_on() -> None:
    proto = without(network(f"{FROM_DATA} u = Unsqueeze(h, i) t = Reshape(u, z)", i=[1]), 5)
    where = node(proto, "Where")
    assert literal(proto, where, 0) == [False, True]
    assert (literal(proto, where, 1)[1], where.input[2]) == (7, "z")


def test_a_target_that_depends_on_data_is_refused_where_axes_are_merged() -> None:
    subject = network(f"{FROM_DATA} u = Reshape(h, s) t = Reshape(u, z)", s=[-1, 2, 4])
    with pytest.raises(CutError, match="only known at run time"):
        subject.sliced(subject.closed(subject.units("a", 1)[[0, 4]].tolist()))


def test_a_computed_target_that_follows_by_itself_is_left_alone() -> None:
    body = "z = Shape(h) u = Unsqueeze(h, i) t = Reshape(u, z)"
    proto = without(network(body, i=[1]), 5)
    assert not [one for one in proto.graph.node if one.op_type == "Where"]


def test_a_size_that_depends_on_the_batch_and_the_cut_is_refused() -> None:
    body = (
        "n = Size(h) k = Constant<value=int64{8}>() o = Shape<start=0, end=1>(x) q = Mul(o, k) "
        "u = Reshape(h, q) r = Relu(u) z = Constant<value=int64[2]{-1, 8}>() t = Reshape(r, z)"
    )
    subject = network(body)
    with pytest.raises(CutError, match="depends on the batch"):
        subject.sliced(subject.closed(subject.units("a", 1)[:1].tolist()))


def test_a_size_that_is_right_at_the_first_batch_only_is_refused() -> None:
    """(8 N + 4) / 8 is N; with 6 channels left it is still 2 for N = 2, but no longer 3 for 3."""
    body = (
        "n = Size(h) four = Constant<value=int64{4}>() m = Add(n, four) "
        "k = Constant<value=int64{8}>() q = Div(m, k) p = Unsqueeze(q, i) "
        "r = Constant<value=int64[1]{-1}>() z = Concat<axis=0>(p, r) "
        "u = Unsqueeze(h, i) t = Reshape(u, z)"
    )
    subject = network(body, i=[0])
    with pytest.raises(CutError, match="depends on the batch"):
        subject.sliced(subject.closed(subject.units("a", 1)[:2].tolist()))


def test_groups_of_a_convolution_are_counted_anew() -> None:
    shapes = {"a": (8, 4, 1), "k": (8, 2, 1), "b": (3, 8, 1)}
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4, 5] x) => (float[N, 3, 5] y) '
        "{ h = Conv(x, a) d = Conv<group=4>(h, k) y = Conv(d, b) }",
        {
            name: np.random.default_rng(0).standard_normal(n).astype("f")
            for name, n in shapes.items()
        },
    )
    subject = traced(proto)
    dead = subject.closed(subject.units("a", 0)[[2, 3]].tolist())
    assert check_surgery(subject, dead) > 0
    assert attribute(node(subject.sliced(dead), "Conv", 1), "group") == 3
