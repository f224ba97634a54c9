"""Operands meeting in a common space: what is tied, what is frozen, what constants receive."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.coupling.join import Operand, broadcast_axes, contract, join
from onnxprune.coupling.labels import AxisLabel, TensorLabels
from onnxprune.coupling.relations import Origin, Relations

TEXT = "not zero"


@pytest.fixture
def relations() -> Relations:
    return Relations()


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
