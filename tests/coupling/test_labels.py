"""Normal form of labels, how they move, and what is tied or frozen where operands meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.coupling.labels import (
    AxisLabel,
    Operand,
    TensorLabels,
    broadcast_axes,
    collapse,
    combine,
    concat,
    contract,
    drop_tied,
    join,
    project,
    reorder,
    reshape,
    simplify,
    take,
)
from onnxprune.coupling.relations import Origin, Relations

HERE = Origin("weight", 0)


@pytest.fixture
def relations() -> Relations:
    return Relations()


def label(
    relations: Relations, axes: tuple[int, ...], *shape: int, flexible: bool = False
) -> AxisLabel:
    return AxisLabel(axes, relations.fresh(shape, HERE), flexible)


def test_a_pristine_constant_gets_one_label_for_each_axis_longer_than_one(
    relations: Relations,
) -> None:
    labels = TensorLabels("w", (3, 1, 4), pristine=True)
    labels.materialise(relations)
    labels.materialise(relations)
    assert [(one.axes, one.atoms.shape) for one in labels.axis_labels] == [
        ((0,), (3,)),
        ((2,), (4,)),
    ]


def test_normal_form_drops_equal_rows(relations: Relations) -> None:
    heads = relations.fresh((4,), HERE)
    (plain,) = simplify(relations, [AxisLabel((0, 1), np.stack([heads, heads]))])
    assert (plain.axes, plain.atoms.tolist()) == ((1,), heads.tolist())


def test_normal_form_freezes_an_index_used_alone(relations: Relations) -> None:
    one = label(relations, (1,), 1)
    assert simplify(relations, [one]) == ()
    assert relations.find(one.atoms).tolist() == [0]


def test_normal_form_freezes_an_axis_that_would_go_at_once(relations: Relations) -> None:
    atoms = np.repeat(relations.fresh((1,), HERE), 3)
    assert simplify(relations, [AxisLabel((0,), atoms)]) == ()
    assert not relations.find(atoms).any()


def test_normal_form_drops_what_is_wholly_frozen_only(relations: Relations) -> None:
    gone, half = label(relations, (0,), 3), label(relations, (1,), 3)
    relations.freeze(gone.atoms, "fixed")
    relations.freeze(half.atoms[:1], "fixed")
    assert [one.axes for one in simplify(relations, [gone, half])] == [(1,)]


def test_layers_covered_by_another_are_dropped(relations: Relations) -> None:
    joint, inner, other = (
        label(relations, (0, 1), 2, 3),
        label(relations, (1,), 3),
        label(relations, (2,), 4),
    )
    assert {one.axes for one in drop_tied((inner, joint, other))} == {(0, 1), (2,)}


def test_projecting_on_a_prefix_leaves_rows_free(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 3)
    heads = project(relations, joint, [1])
    assert heads.axes == (1,)
    assert [m.tolist() for _, m in relations.definitions] == joint.atoms.tolist()
    assert not relations.alignments


def test_projecting_on_anything_else_aligns_the_rows(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 3)
    assert project(relations, joint, [2]).atoms.shape == (3,)
    assert [a.tolist() for a in relations.alignments] == [joint.atoms.tolist()]


def test_nesting_order_decides_what_a_prefix_is(relations: Relations) -> None:
    project(relations, label(relations, (2, 1), 2, 3), [2])
    assert not relations.alignments


def test_reordering_aligns_and_transposes(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 3)
    assert reorder(relations, joint, (1, 2)) is joint
    assert not relations.alignments
    turned = reorder(relations, joint, (2, 1))
    assert turned.atoms.tolist() == joint.atoms.T.tolist()
    assert [a.tolist() for a in relations.alignments] == [joint.atoms.tolist()]


def test_statistics_freeze_a_plain_label_and_tie_a_joint_one(relations: Relations) -> None:
    plain, joint = label(relations, (2,), 3), label(relations, (1, 2), 2, 3)
    (left,) = collapse(relations, [plain, joint], 2, "statistics")
    assert not relations.find(plain.atoms).any()
    assert (left.axes, len(np.unique(relations.find(joint.atoms)))) == ((1,), 2)


def test_taking_is_numpy_take(relations: Relations) -> None:
    plain = label(relations, (1,), 5)
    (taken,) = take(relations, [plain], 1, np.array([4, 0, 0]))
    assert taken.atoms.tolist() == plain.atoms[[4, 0, 0]].tolist()


def test_taking_a_range_of_every_row_keeps_the_counts_up_to_its_end(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 6)
    take(relations, [joint], 2, np.arange(2, 5))
    assert [r.shape for r in relations.rectangles] == [(2, 5), (2, 3)]
    assert not relations.alignments


def test_a_row_dies_with_the_part_taken_of_it(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 6)
    (part,) = take(relations, [joint], 2, np.arange(2, 5))
    whole, piece = (relations.conjunction(one.atoms) for one in (joint, part))
    assert relations.find(whole).tolist() == relations.find(piece).tolist()


def test_taking_scattered_entries_of_every_row_aligns_the_rows(relations: Relations) -> None:
    joint = label(relations, (1, 2), 2, 6)
    take(relations, [joint], 2, np.array([5, 0, 3]))
    assert [a.tolist() for a in relations.alignments] == [joint.atoms.tolist()]


def test_taking_whole_rows_demands_no_alignment(relations: Relations) -> None:
    take(relations, [label(relations, (1, 2), 3, 4)], 1, np.array([2, 0]))
    assert not relations.alignments


def test_combined_layers_die_with_their_row_or_their_column(relations: Relations) -> None:
    rows, columns = label(relations, (0,), 2), label(relations, (1,), 3)
    joint = combine(relations, rows, columns)
    assert joint.axes == (0, 1)
    assert relations.find(project(relations, joint, [0]).atoms).tolist() == rows.atoms.tolist()
    assert relations.find(project(relations, joint, [1]).atoms).tolist() == columns.atoms.tolist()
    assert any(a.shape == (2, 3) for a in relations.alignments)


def test_splitting_an_axis_gives_a_joint_label_and_a_rectangle(relations: Relations) -> None:
    plain = label(relations, (1,), 8)
    (joint,) = reshape(relations, (plain,), (5, 8), (5, 2, 4))
    assert joint.axes == (1, 2)
    assert joint.atoms.tolist() == plain.atoms.reshape(2, 4).tolist()
    assert len(relations.rectangles) == 1


def test_flattening_repeats_each_atom_for_what_it_is_merged_with(relations: Relations) -> None:
    first, last = label(relations, (1,), 3), label(relations, (3,), 3)
    (channels_first,) = reshape(relations, (first,), (5, 3, 2, 2), (5, 12))
    (channels_last,) = reshape(relations, (last,), (5, 2, 2, 3), (5, 12))
    assert channels_first.atoms.tolist() == np.repeat(first.atoms, 4).tolist()
    assert channels_last.atoms.tolist() == np.tile(last.atoms, 4).tolist()


def test_extent_one_is_neither_lost_nor_confused(relations: Relations) -> None:
    plain = label(relations, (2,), 3)
    (moved,) = reshape(relations, (plain,), (1, 5, 3, 1), (5, 1, 1, 3))
    assert (moved.axes, moved.atoms.tolist()) == ((3,), plain.atoms.tolist())


def test_merging_in_another_order_than_the_nesting_aligns(relations: Relations) -> None:
    shuffled = label(relations, (2, 1), 2, 3)
    (flat,) = reshape(relations, (shuffled,), (5, 3, 2), (5, 6))
    assert flat.atoms.tolist() == shuffled.atoms.T.ravel().tolist()
    assert relations.alignments


def test_the_repeat_count_of_an_expanded_axis_stays(relations: Relations) -> None:
    heads, copies = label(relations, (1,), 2), label(relations, (2,), 3, flexible=True)
    (flat,) = reshape(relations, (heads, copies), (5, 2, 3), (5, 6))
    assert flat.atoms.tolist() == np.repeat(heads.atoms, 3).tolist()
    assert not relations.find(copies.atoms).any()


def test_concatenation_pads_with_frozen_entries(relations: Relations) -> None:
    plain = label(relations, (1,), 2)
    (joined,) = concat(relations, [((plain,), 2), ((), 3), ((plain,), 2)], 1)
    assert joined.atoms.tolist() == [*plain.atoms.tolist(), 0, 0, 0, *plain.atoms.tolist()]


def test_concatenating_joint_labels_keeps_them_rectangular(relations: Relations) -> None:
    left, right = label(relations, (1, 2), 2, 3), label(relations, (1, 2), 2, 4)
    (joined,) = concat(relations, [((left,), 3), ((right,), 4)], 2)
    assert joined.atoms.tolist() == np.concatenate([left.atoms, right.atoms], axis=1).tolist()
    assert [r.shape for r in relations.rectangles] == [(2, 7)]


@st.composite
def factorisations(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same number of entries."""
    primes = draw(st.lists(st.sampled_from((1, 2, 3)), min_size=1, max_size=5))

    def grouped() -> tuple[int, ...]:
        cuts = draw(st.lists(st.booleans(), min_size=len(primes), max_size=len(primes)))
        shape = [1]
        for prime, cut in zip(primes, cuts, strict=True):
            shape = [*shape, prime] if cut else [*shape[:-1], shape[-1] * prime]
        return tuple(shape)

    return grouped(), grouped()


@given(factorisations(), st.data())
def test_reshaped_labels_name_the_same_elements(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    """For every element: its atom before is its atom after, whatever the shapes."""
    before, after = shapes
    long = [axis for axis, extent in enumerate(before) if extent > 1]
    if not long:
        return
    axis, relations = data.draw(st.sampled_from(long)), Relations()
    plain = label(relations, (axis,), before[axis])
    (result,) = reshape(relations, (plain,), before, after)
    assert spread(result, after).ravel().tolist() == spread(plain, before).ravel().tolist()


def spread(one: AxisLabel, shape: tuple[int, ...]) -> np.ndarray:
    """The atom of every element of a tensor."""
    order = np.argsort(one.axes)
    atoms = one.atoms.transpose(order)
    index = tuple(slice(None) if axis in one.axes else np.newaxis for axis in range(len(shape)))
    return np.broadcast_to(atoms[index], shape)


TEXT = "not zero"


def tensor(
    relations: Relations, shape: tuple[int, ...], *labelled: tuple[int, ...], zero: bool = False
) -> TensorLabels:
    axis_labels = tuple(
        AxisLabel(axes, relations.fresh(tuple(shape[a] for a in axes), Origin("t", axes[0])))
        for axes in labelled
    )
    return TensorLabels("t", shape, axis_labels, zero=zero)


def constant(*shape: int) -> TensorLabels:
    return TensorLabels("c", shape, constant=True, pristine=True, zero=True)


def whole(labels: TensorLabels) -> Operand:
    return Operand(labels, tuple(range(len(labels.shape))))


def test_broadcast_axes_count_from_the_end() -> None:
    assert broadcast_axes(2, 4) == (2, 3)


def test_equal_axes_are_tied_position_by_position(relations: Relations) -> None:
    left, right = tensor(relations, (5, 3), (1,)), tensor(relations, (5, 3), (1,))
    (joined,) = join(relations, [whole(left), whole(right)])
    assert joined.axes == (1,)
    classes = [relations.find(one.axis_labels[0].atoms).tolist() for one in (left, right)]
    assert classes[0] == classes[1]


def test_an_axis_of_extent_one_has_no_say(relations: Relations) -> None:
    left, right = tensor(relations, (5, 3), (1,)), tensor(relations, (5, 1))
    (joined,) = join(relations, [whole(left), whole(right)])
    assert joined.axes == (1,)
    assert relations.find(joined.atoms).all()


def test_an_unlabelled_partner_of_equal_extent_freezes(relations: Relations) -> None:
    left, right = tensor(relations, (5, 3), (1,)), tensor(relations, (5, 3))
    assert join(relations, [whole(left), whole(right)]) == ()
    assert relations.reason(int(left.axis_labels[0].atoms[0])) is not None


def test_an_unlabelled_partner_of_heads_leaves_their_dimensions_free(relations: Relations) -> None:
    left, right = tensor(relations, (5, 2, 3), (1, 2)), tensor(relations, (5, 2, 1))
    (joined,) = join(relations, [whole(left), whole(right)])
    assert joined.axes == (1, 2)
    assert relations.find(joined.atoms).all()
    assert all(relations.find(np.array([c], np.int32))[0] == 0 for c, _ in relations.definitions)


def test_a_pristine_constant_receives_labels_and_brings_its_own(relations: Relations) -> None:
    data, weight = tensor(relations, (5, 3), (1,)), constant(3, 4)
    axis_labels = join(relations, [Operand(weight, (1, 2)), Operand(data, (0, 1))])
    assert {one.axes for one in axis_labels} == {(1,), (2,)}
    assert [one.axes for one in weight.axis_labels] == [(0,), (1,)]
    assert weight.axis_labels[0].atoms.tolist() == data.axis_labels[0].atoms.tolist()


def test_a_bias_shared_by_all_heads_aligns_them(relations: Relations) -> None:
    data, table = tensor(relations, (5, 2, 3), (1, 2)), constant(3)
    join(relations, [whole(data), Operand(table, (2,))])
    assert table.axis_labels[0].axes == (0,)
    assert [a.tolist() for a in relations.alignments] == [data.axis_labels[0].atoms.tolist()]


def test_joint_labels_nested_differently_are_reordered(relations: Relations) -> None:
    left, right = tensor(relations, (2, 3), (0, 1)), tensor(relations, (2, 3), (1, 0))
    join(relations, [whole(left), whole(right)])
    ours, theirs = (relations.find(one.axis_labels[0].atoms) for one in (left, right))
    assert ours.tolist() == theirs.T.tolist()
    assert relations.alignments


def test_contraction_ties_the_summed_axis_and_keeps_the_rest(relations: Relations) -> None:
    data, weight = tensor(relations, (5, 3), (1,)), constant(3, 4)
    (result,) = contract(relations, [Operand(data, (0, 1)), Operand(weight, (1, 2))], (0, 2), TEXT)
    assert result.axes == (2,)
    assert relations.find(data.axis_labels[0].atoms).all()


@pytest.mark.parametrize("zero", [False, True])
def test_a_product_of_activations_needs_a_zero_on_one_side(
    relations: Relations, zero: bool
) -> None:
    left = tensor(relations, (5, 3), (1,), zero=zero)
    right = tensor(relations, (3, 6), (0,))
    contract(relations, [Operand(left, (0, 1)), Operand(right, (1, 2))], (0, 2), TEXT)
    assert relations.find(left.axis_labels[0].atoms).all() == zero


def test_contracting_the_dimensions_leaves_the_heads_as_composites(relations: Relations) -> None:
    query = tensor(relations, (2, 5, 3), (0, 2), zero=True)
    key = tensor(relations, (2, 3, 5), (0, 1))
    operands = [Operand(query, (0, 1, 2)), Operand(key, (0, 2, 3))]
    (heads,) = contract(relations, operands, (0, 1, 3), TEXT)
    assert heads.axes == (0,)
    assert dict(zip(*zip(*relations.definitions, strict=True), strict=True)).keys() == set(
        heads.atoms.tolist()
    )
    assert not relations.alignments
