"""Views are drawn where the teacher takes them for more of the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers.oracle import ONE_THREAD
from helpers.reducing import graph, weights

from onnxprune.distillation.losses import Feature
from onnxprune.distillation.pool import Part
from onnxprune.distillation.teacher import Teacher, with_variance
from onnxprune.distillation.views import fitting_views
from onnxprune.model.load import load

IMAGES = graph(
    "(float[N, 3, 8, 8] x) => (float[N, 2] y)",
    "h = Conv<pads = [1, 1, 1, 1]>(x, a) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) "
    "y = MatMul(f, b)",
    weights(a=(6, 3, 3, 3), b=(6, 2)),
)
TOKENS = graph(
    "(int64[N, 12] x) => (float[N, 12, 2] y)",
    "e = Gather(t, x) s = CumSum(e, along) r = Relu(s) y = MatMul(r, b)",
    {**weights(t=(20, 6), b=(6, 2)), "along": np.array(1)},
)


def views_of(proto: Any, x: np.ndarray) -> tuple[str, ...]:
    model = load(proto).model
    parts = [Part({"x": x[at : at + 32]}, np.arange(at, at + 32)) for at in range(0, len(x), 32)]
    plain = Teacher(model, [Feature("r")], ONE_THREAD)
    features = with_variance([Feature("r")], [plain.run(part.feed)[1] for part in parts])
    teacher = Teacher(model, features, ONE_THREAD)
    return fitting_views(teacher, parts, np.random.default_rng(0))


def test_symmetric_images_may_be_mirrored() -> None:
    noise = np.random.default_rng(0).standard_normal((256, 3, 8, 8)).astype(np.float32)
    assert views_of(IMAGES, noise) == ("flip",)


def test_images_that_look_to_one_side_may_not() -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((256, 3, 8, 8)).astype(np.float32)
    images += np.linspace(-2, 2, 8, dtype=np.float32) ** 3
    assert views_of(IMAGES, images) == ()


def test_sequences_of_tokens_may_be_spliced_where_nothing_ties_both_ends() -> None:
    rng = np.random.default_rng(0)
    assert views_of(TOKENS, rng.integers(0, 20, (256, 12))) == ("splice",)


def test_what_is_neither_image_nor_tokens_has_no_views() -> None:
    proto = graph(
        "(float[N, 4] x) => (float[N, 2] y)",
        "r = MatMul(x, a) y = MatMul(r, b)",
        weights(a=(4, 6), b=(6, 2)),
    )
    assert views_of(proto, np.random.default_rng(0).standard_normal((64, 4)).astype("f4")) == ()
