"""What the trace of a model says: groups, who owns and who reads them, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import Traced, parse, random_removal, traced

from onnxprune.coupling.cut import CutError
from onnxprune.coupling.groups import find_groups, find_refusals

HEADER = '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y)'


def network(body: str, **shapes: tuple[int, ...]) -> Traced:
    rng = np.random.default_rng(0)
    ints = {"heads": np.array([0, 4, 2]), "flat": np.array([0, 8]), "last": np.array([1])}
    weights = {name: rng.standard_normal(n).astype(np.float32) for name, n in shapes.items()}
    used = {name: array for name, array in ints.items() if f" {name})" in body}
    return traced(parse(f"{HEADER} {{ {body} }}", used | weights))


def test_a_chain_has_one_unit_for_each_channel() -> None:
    (group,) = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3)).groups
    assert (group.name, group.kind, group.size, len(group.constraints)) == ("a[1]", "channel", 8, 0)
    assert [(one.tensor, one.axes) for one in group.owned] == [("a", (1,)), ("b", (0,))]
    assert all(one.units.tolist() == list(range(8)) for one in group.owned)
    assert (group.axes, group.closed) == ((tuple(range(8)),), (True,))


def test_a_group_knows_the_contraction_that_reads_it() -> None:
    (group,) = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3)).groups
    (reading,) = group.readings
    consumer = reading.consumer
    assert (consumer.node, consumer.tensor, consumer.axis) == ("y", "h", 1)
    assert (consumer.weight, consumer.weight_axis, consumer.group) == ("b", 0, 1)
    assert reading.units.tolist() == list(range(8))


def test_groups_come_in_the_order_in_which_the_graph_makes_them() -> None:
    body = "h = MatMul(x, a) i = Relu(h) j = MatMul(i, b) y = MatMul(j, c)"
    subject = network(body, c=(5, 3), b=(8, 5), a=(4, 8))
    assert [group.name for group in subject.groups] == ["a[1]", "b[1]"]


def test_channels_that_meet_are_one_group() -> None:
    subject = network(
        "h = MatMul(x, a) i = MatMul(x, b) j = Add(h, i) y = MatMul(j, c)",
        a=(4, 8), b=(4, 8), c=(8, 3),
    )  # fmt: skip
    (group,) = subject.groups
    assert group.size == 8
    assert {one.tensor for one in group.owned} == {"a", "b", "c"}


def test_an_axis_shared_by_two_groups_is_closed_for_neither() -> None:
    subject = network(
        "h = MatMul(x, a) i = MatMul(x, b) j = Concat<axis=1>(h, i) y = MatMul(j, c)",
        a=(4, 6), b=(4, 5), c=(11, 3),
    )  # fmt: skip
    assert [group.size for group in subject.groups] == [6, 5]
    owned = subject.groups[1].owned[-1]
    assert (owned.tensor, owned.units.tolist()) == ("c", [-1] * 6 + list(range(5)))


def test_concatenated_groups_hold_no_more_than_their_own_positions() -> None:
    subject = network(
        "h = MatMul(x, a) i = MatMul(h, b) j = Concat<axis=1>(h, i) k = MatMul(j, c) "
        "l = Concat<axis=1>(h, i, k) y = MatMul(l, d)",
        a=(4, 6), b=(6, 5), c=(11, 7), d=(18, 3),
    )  # fmt: skip
    held: dict[tuple[str, int], list[int]] = {}
    for group in subject.groups:
        for owned in group.owned:
            held.setdefault((owned.tensor, owned.axes[0]), []).extend(owned.positions.tolist())
    shared = {place: sorted(positions) for place, positions in held.items()}
    assert shared["c", 0] == list(range(11))
    assert shared["d", 0] == list(range(18))


def test_a_product_of_two_activations_makes_heads() -> None:
    subject = network(
        "h = MatMul(x, a) r = Reshape(h, heads) t = Transpose<perm=[0, 2, 1]>(r) "
        "m = MatMul(r, t) n = MatMul(m, r) f = Reshape(n, flat) y = MatMul(f, c)",
        a=(4, 8), c=(8, 3),
    )  # fmt: skip
    (group,) = subject.groups
    assert group.kind == "head"
    assert None in {reading.consumer.weight for reading in group.readings}


def test_statistics_in_each_head_leave_whole_heads() -> None:
    subject = network(
        "h = MatMul(x, a) r = Reshape(h, heads) u = LayerNormalization(r, g) f = Reshape(u, flat) "
        "y = MatMul(f, c)",
        a=(4, 8), g=(2,), c=(8, 3),
    )  # fmt: skip
    (group,) = subject.groups
    assert group.size == 4
    assert group.owned[0].units.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_head_with_a_fixed_dimension_stays(when: str) -> None:
    used_alone = "i = Constant<value=int64{3}>() g = Gather<axis=1>(h, i) o = Unsqueeze(g, last)"
    heads = "r = Reshape(h, heads) m = ReduceSum<keepdims=0>(r, two) n = MatMul(m, c)"
    parts = [used_alone, heads] if when == "before" else [heads, used_alone]
    two = "two = Constant<value=int64[1]{2}>()"
    subject = network(f"h = MatMul(x, a) {two} {' '.join(parts)} y = Mul(n, o)", a=(4, 8), c=(4, 3))
    assert (subject.units("c", 0) == 0).tolist() == [False, True, False, False]


def test_what_is_added_to_heads_is_cut_in_rows_and_columns() -> None:
    subject = network(
        "h = MatMul(x, a) r = Reshape(h, heads) v = Add(r, c) f = Reshape(v, flat) "
        "y = MatMul(f, b)",
        a=(4, 8), c=(4, 2), b=(8, 3),
    )  # fmt: skip
    dead = subject.closed(subject.units("a", 1)[[1]].tolist(), same_positions=False)
    kept = subject.cut(dead).kept("c")
    assert {axis: indices.tolist() for axis, indices in kept.items()} == {1: [0]}


def test_refusals_name_the_axis_the_node_and_the_reason() -> None:
    subject = network("h = MatMul(x, a) s = Softmax(h) y = MatMul(s, b)", a=(4, 8), b=(8, 3))
    inner, outer = find_refusals(subject.coupling)
    assert (inner.axis, inner.node, inner.parameters) == ("a[1]", "Softmax s", 32)
    assert inner.reason == "Softmax takes statistics over it"
    assert (outer.axis, outer.node) == ("b[1]", "graph output")


def test_parameters_of_an_op_are_no_weights_that_are_held_back() -> None:
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4, 5] x) => (float[N, 3, 10] y) '
        "{ h = Conv(x, a) r = Resize(h, , s) y = Conv(r, b) }",
        {
            "a": np.ones((8, 4, 1), np.float32),
            "b": np.ones((3, 8, 1), np.float32),
            "s": np.array([1, 1, 2], np.float32),
        },
    )
    assert [one.axis for one in find_refusals(traced(proto).coupling)] == ["b[0]"]


@pytest.mark.parametrize(
    "order", ["r = Resize(h, , s) m = Mul(h, s)", "m = Mul(h, s) r = Resize(h, , s)"]
)
def test_a_parameter_that_is_also_a_factor_keeps_what_it_meets_whole(order: str) -> None:
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4, 3] x) '
        f"=> (float[N, 3, 6] y, float[N, 2, 3] z) {{ h = Conv(x, a) {order} y = Conv(r, b) "
        "z = Conv(m, c) }",
        {
            **{
                n: np.ones(k, np.float32)
                for n, k in {"a": (8, 4, 1), "b": (3, 8, 1), "c": (2, 8, 1)}.items()
            },
            "s": np.array([1, 1, 2], np.float32),
        },
    )
    (group,) = traced(proto).groups
    assert {one.tensor for one in group.owned} == {"a", "b", "c"}


def test_an_axis_that_can_be_cut_in_part_is_refused_for_the_rest() -> None:
    subject = network(
        "h = MatMul(x, a) t = Concat<axis=1>(h, h) i = Constant<value=int64[1]{3}>() "
        "u = Gather<axis=1>(t, i) v = Mul(t, u) y = MatMul(v, b)",
        a=(4, 8), b=(16, 3),
    )  # fmt: skip
    inner = find_refusals(subject.coupling)[0]
    assert (inner.axis, inner.parameters) == ("a[1]", 4)
    assert subject.groups[0].size == 7


def test_a_graph_output_inside_the_graph_freezes_what_it_shows() -> None:
    proto = parse(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 4] x) => (float[N, 3] y, '
        "float[N, 8] h) { h = MatMul(x, a) y = MatMul(h, b) }",
        {"a": np.ones((4, 8), np.float32), "b": np.ones((8, 3), np.float32)},
    )
    assert not traced(proto).groups


@pytest.mark.parametrize("axis", [0, 1])
def test_a_cut_that_is_no_product_of_indices_is_refused(axis: int) -> None:
    subject = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3))
    everything = subject.groups[0].all_units.tolist()
    with pytest.raises(CutError, match=r"not a product|not form a dense"):
        subject.cut(everything).kept("ab"[axis])
    with pytest.raises(CutError, match="the kept entries of h do not form a dense tensor"):
        subject.cut(everything).shape("h")


def test_a_cut_knows_shapes_at_both_sizes_and_kept_indices() -> None:
    subject = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3))
    cut = subject.cut(subject.units("a", 1)[[2, 5]].tolist())
    assert (cut.shape("h"), cut.shape("h", second=True)) == ((2, 6), (3, 6))
    assert {axis: kept.tolist() for axis, kept in cut.kept("b").items()} == {0: [0, 1, 3, 4, 6, 7]}
    assert (cut.touches("a"), cut.touches("x"), cut.touches("y")) == (True, False, False)


def test_a_random_removal_keeps_its_budget_and_one_unit_of_each_axis() -> None:
    subject = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3))
    assert 1 <= len(random_removal(subject, 0.5, 0)) <= 4
    assert max(len(random_removal(subject, 1.0, seed)) for seed in range(9)) == 7
    assert random_removal(subject, 0.5, 0) != random_removal(subject, 0.5, 1)


def test_tracing_twice_gives_the_same_groups() -> None:
    subject = network("h = MatMul(x, a) y = MatMul(h, b)", a=(4, 8), b=(8, 3))
    again = find_groups(subject.coupling)
    assert [g.name for g in again] == [g.name for g in subject.groups]
    assert [g.units.tolist() for g in again] == [g.units.tolist() for g in subject.groups]
