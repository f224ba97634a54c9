"""Moments that decide over components: what a softmax ignores does not count."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.aligning import CONTEXT, batches, weights
from helpers.oracle import parse, traced

from onnxprune.compensation.components.linear_paths import linear_sets
from onnxprune.compensation.components.matrix import measure
from onnxprune.surgery.editable_model import EditableModel

ATTENTION = """(float[N, 5, 12] x) => (float[N, 5, 7] y) {
    m = MatMul(x, wq) q = Add(m, bq) k = MatMul(x, wk) kb = Add(k, bk) v = MatMul(x, wv)
    t = Transpose<perm = [0, 2, 1]>(kb) s = MatMul(q, t) p = SOFTMAX(s)
    flat = MatMul(p, v) y = MatMul(flat, wo) }"""
FAR = np.full(4, 50, np.float32)
"""Added to all keys, it adds the same to all scores of a row; to all queries, of a column."""


@pytest.mark.parametrize(
    ("opset", "softmax", "ignored"),
    [
        (18, "Softmax", "keys"),
        (18, "Softmax<axis = 1>", "queries"),
        (12, "Softmax<axis = 2>", "keys"),
        (12, "Softmax<axis = -1>", "keys"),
        # rows and columns at once, which is also the default
        (12, "Softmax<axis = 1>", ""),
        (12, "Softmax", ""),
    ],
)
def test_a_mean_counts_unless_the_softmax_ignores_it(
    opset: int, softmax: str, ignored: str
) -> None:
    text = ATTENTION.replace("SOFTMAX", softmax)
    given = weights(wq=(12, 4), wk=(12, 4), wv=(12, 4), wo=(4, 7)) | {"bq": FAR, "bk": FAR}
    subject = traced(parse(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}', given))
    full = EditableModel(subject.model.clone(), subject.coupling)
    sets, _ = linear_sets(full.model, full.coupling, subject.groups)
    (product,) = [number for number, found in enumerate(sets) if found.products]
    moments = measure(full, sets, batches(subject.proto), CONTEXT)[product]
    assert moments is not None
    central = {
        name
        for name, moment in (("queries", moments.spread), ("keys", moments.weight))
        if np.trace(moment) < FAR @ FAR
    }
    assert central == {ignored} - {""}
