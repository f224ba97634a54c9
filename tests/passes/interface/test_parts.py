"""Which part of an output belongs to the classes is read from what joins it."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import ONE_THREAD
from helpers.reducing import Weights, graph, weights

from onnxprune.errors import InputError
from onnxprune.model.load import load
from onnxprune.model.observe import observe
from onnxprune.passes.interface.parts import Part, find_parts

HEADS = weights(a=(3, 4), b=(3, 6), c=(3, 6))
PARTS = "p = MatMul (x, a) q = MatMul (x, b)"


def found(
    body: str, out: str, first: int | None = None, values: Weights | None = None
) -> list[Part]:
    """Parts with six entries of the output y, made of x [N, 5, 3]."""
    every = {**HEADS, **(values or {})}
    used = {name: array for name, array in every.items() if f" {name})" in body}
    model = load(graph("(float[N, 5, 3] x) => (float" + out + " y)", body, used)).model
    facts = observe(model, ONE_THREAD, np.random.default_rng(0))
    return find_parts(model.graph.outputs[0], facts, 6, first)


def test_whole_axis() -> None:
    assert found("y = MatMul (x, b)", "[N, 5, 6]") == [Part(2)]


@pytest.mark.parametrize(
    ("tail", "out", "part"),
    [
        ("y = Concat <axis = 2> (p, q)", "[N, 5, 10]", Part(2, 4)),
        ("y = Concat <axis = 2> (q, p)", "[N, 5, 10]", Part(2, 0)),
        ("j = Concat <axis = -1> (p, q) y = Sigmoid (j)", "[N, 5, 10]", Part(2, 4)),
        (
            "j = Concat <axis = 2> (p, q) y = Transpose <perm = [0, 2, 1]> (j)",
            "[N, 10, 5]",
            Part(1, 4),
        ),
        ("i = Concat <axis = 2> (p, q) y = Concat <axis = 2> (p, i)", "[N, 5, 14]", Part(2, 8)),
        ("j = Concat <axis = 2> (p, q) y = Concat <axis = 1> (j, j)", "[N, 10, 10]", Part(2, 4)),
    ],
)
def test_part_that_a_concat_joins(tail: str, out: str, part: Part) -> None:
    assert found(f"{PARTS} {tail}", out) == [part]


def test_reshape_that_leaves_the_axis_as_it_is() -> None:
    body = f"{PARTS} j = Concat <axis = 2> (p, q) y = Reshape (j, s)"
    for shape, out, parts in (
        ([0, 5, 1, 10], "[N, 5, 1, 10]", [Part(3, 4)]),
        ([0, 50], "[N, 50]", []),
        ([0, 10, 5], "[N, 10, 5]", []),
    ):
        assert found(body, out, values={"s": np.array(shape, np.int64)}) == parts


def test_several_parts_of_that_size_are_ambiguous() -> None:
    body = "p = MatMul (x, b) q = MatMul (x, c) y = Concat <axis = 2> (p, q)"
    with pytest.raises(InputError, match=r"begin at \[0, 6\]"):
        found(body, "[N, 5, 12]")
    assert found(body, "[N, 5, 12]", first=6) == [Part(2, 6)]


def test_given_position_means_the_axis_that_ends_with_the_classes() -> None:
    body = f"{PARTS} i = Concat <axis = 2> (p, q) y = Concat <axis = 1> (i, i, i)"
    assert found(body, "[N, 15, 10]", first=4) == [Part(2, 4)]
    assert found(body, "[N, 15, 10]", first=3) == [Part(1, 3), Part(2, 3)]
    assert found(body, "[N, 15, 10]", first=11) == []
