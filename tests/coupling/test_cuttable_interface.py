"""What may be cut of the interface once that is asked for, and nothing else."""

from __future__ import annotations

import numpy as np
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.coupling.cuttable_interface import (
    LOOKUP_RULES,
    CuttableInterface,
    picks_among,
    reads_all,
)
from onnxprune.coupling.trace import Coupling, trace
from onnxprune.model.load import load
from onnxprune.model.observe import observe


def traced(
    signature: str, body: str, opening: CuttableInterface, **shapes: tuple[int, ...]
) -> Coupling:
    model = load(graph(signature, body, weights(**shapes))).model
    facts = observe(model, ONE_THREAD, np.random.default_rng(0))
    return trace(model, facts, opening=opening)


def free(coupling: Coupling, tensor: str, axis: int) -> bool:
    """Whether every entry of an axis can go by itself."""
    for label in coupling.tensors[tensor].axis_labels:
        if label.axes == (axis,):
            classes = coupling.unit_of[label.atoms]
            return bool(classes.all()) and len(set(classes.tolist())) == len(classes)
    return False


def test_only_the_axis_that_is_named_is_opened() -> None:
    signature = "(float[N, 4] x) => (float[N, 6] y, float[N, 5] z)"
    body = "y = MatMul (x, a) z = MatMul (x, b)"
    opening = CuttableInterface({"y": frozenset({1})})
    coupling = traced(signature, body, opening, a=(4, 6), b=(4, 5))
    assert free(coupling, "a", 1)
    assert not free(coupling, "b", 1)
    assert not free(traced(signature, body, CuttableInterface(), a=(4, 6), b=(4, 5)), "a", 1)


def test_softmax_freezes_unless_it_has_another_rule() -> None:
    signature = "(float[N, 4] x) => (float[N, 6] y)"
    body = "h = MatMul (x, a) y = Softmax (h)"
    axes = {"y": frozenset({1})}
    assert not free(traced(signature, body, CuttableInterface(axes), a=(4, 6)), "a", 1)
    assert free(
        traced(signature, body, CuttableInterface(axes, {"y": reads_all}), a=(4, 6)), "a", 1
    )


def test_label_does_not_hold_back_the_scores_it_is_picked_from() -> None:
    signature = "(float[N, 4] x) => (float[N, 6] y, int64[N] z)"
    body = "h = MatMul (x, a) y = Identity (h) z = ArgMax <axis = 1, keepdims = 0> (h)"
    axes = {"y": frozenset({1})}
    assert not free(traced(signature, body, CuttableInterface(axes), a=(4, 6)), "a", 1)
    assert free(
        traced(signature, body, CuttableInterface(axes, {"z": picks_among}), a=(4, 6)), "a", 1
    )


def test_rows_that_are_looked_up_can_go_when_indices_follow() -> None:
    signature = "(int64[N] x) => (float[N, 3] y)"
    body = "e = Gather (table, x) y = MatMul (e, a)"
    opening = CuttableInterface(rules={"e": LOOKUP_RULES["Gather"](0)}, renumbered=frozenset({"e"}))
    coupling = traced(signature, body, opening, table=(12, 4), a=(4, 3))
    assert free(coupling, "table", 0)
    assert free(coupling, "table", 1), "features still go with what reads them"
    assert not free(
        traced(signature, body, CuttableInterface(), table=(12, 4), a=(4, 3)), "table", 0
    )
