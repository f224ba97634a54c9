"""Atoms, their classes, and the constraints that are recorded between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.coupling.relations import DisjointSets, Origin, Relations

HERE = Origin("weight", 0)


@pytest.fixture
def relations() -> Relations:
    return Relations()


def array(*atoms: int) -> np.ndarray:
    return np.array(atoms, np.int32)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_disjoint_sets_agree_with_a_naive_partition(pairs: list[tuple[int, int]]) -> None:
    sets, naive = DisjointSets(20), [{i} for i in range(20)]
    for left, right in pairs:
        sets.link(left, right)
        union = naive[left] | naive[right]
        for member in union:
            naive[member] = union
    roots = sets.roots(np.arange(20, dtype=np.int32))
    assert roots.tolist() == [min(members) for members in naive]


@given(st.lists(st.integers(0, 9), min_size=10, max_size=10))
def test_linking_all_at_once_is_linking_pair_by_pair(partners: list[int]) -> None:
    at_once, one_by_one = DisjointSets(10), DisjointSets(10)
    everyone = np.arange(10, dtype=np.int32)
    at_once.link_all(everyone, np.array(partners, np.int32))
    for left, right in enumerate(partners):
        one_by_one.link(left, right)
    assert at_once.roots(everyone).tolist() == one_by_one.roots(everyone).tolist()


def test_sets_grow_beyond_their_first_allocation() -> None:
    sets = DisjointSets()
    first, many = sets.allocate(3), sets.allocate(5000)
    sets.link(int(first[0]), int(many[-1]))
    assert sets.roots(many)[-1] == first[0]
    assert (sets.roots(many)[:-1] == many[:-1]).all()


def test_fresh_atoms_are_all_different_and_remember_their_origin(relations: Relations) -> None:
    atoms = relations.fresh((2, 3), HERE)
    assert len(np.unique(relations.find(atoms))) == 6
    assert relations.origins[relations.blocks()[atoms[1, 2]]] == HERE


def test_unified_atoms_are_one_class(relations: Relations) -> None:
    left, right = relations.fresh((3,), HERE), relations.fresh((3,), HERE)
    relations.unify(left, right)
    assert relations.find(left).tolist() == relations.find(right).tolist()


def test_frozen_is_contagious_and_the_first_reason_is_kept(relations: Relations) -> None:
    left, right, last = (relations.fresh((2,), HERE) for _ in range(3))
    relations.node = "Softmax one"
    relations.freeze(left, "statistics")
    relations.node = "MatMul two"
    relations.freeze(left, "something else")
    relations.unify(right, left)
    relations.unify(last, right)
    assert not relations.find(last).any()
    reason = relations.reason(int(last[0]))
    assert reason is not None
    assert (reason.node, reason.text) == ("Softmax one", "statistics")


def test_freezing_one_atom_leaves_its_neighbours_free(relations: Relations) -> None:
    atoms = relations.fresh((3,), HERE)
    relations.freeze(atoms[1:2], "used alone")
    assert (relations.find(atoms) == 0).tolist() == [False, True, False]
    assert relations.reason(int(atoms[0])) is None


def test_the_conjunction_of_one_class_is_that_class(relations: Relations) -> None:
    atoms = relations.fresh((2,), HERE)
    rows = np.stack([atoms, atoms], axis=1)
    assert relations.conjunction(rows).tolist() == atoms.tolist()
    assert not relations.definitions


def test_a_conjunction_is_made_once(relations: Relations) -> None:
    rows = relations.fresh((2, 3), HERE)
    once, again = relations.conjunction(rows), relations.conjunction(rows[:, ::-1])
    assert once.tolist() == again.tolist()
    assert [(c, m.tolist()) for c, m in relations.definitions] == [
        (once[0], rows[0].tolist()),
        (once[1], rows[1].tolist()),
    ]
    assert (relations.blocks()[once] == -1).all()


def test_a_conjunction_with_a_frozen_member_never_dies(relations: Relations) -> None:
    rows = relations.fresh((1, 3), HERE)
    relations.freeze(rows[0, 1:2], "fixed")
    assert relations.find(relations.conjunction(rows)).tolist() == [0]
    assert relations.find(rows)[0, 0] != 0


def test_trivial_constraints_are_not_recorded(relations: Relations) -> None:
    relations.rectangle(relations.fresh((4,), HERE))
    relations.align(relations.fresh((1, 4), HERE))
    relations.align(relations.fresh((4, 1), HERE))
    assert not relations.rectangles
    assert not relations.alignments


def test_atom_zero_is_frozen_from_the_start(relations: Relations) -> None:
    assert relations.find(array(0)).tolist() == [0]
    assert relations.reason(0) is not None
