"""Whatever a model file looks like: a valid smaller model, or one line that says what is wrong."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzzing import SUBJECTS, Subject, damage_bytes, judge
from helpers.mutations import MUTATIONS, Mutation
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnx-ir warns about each oddity."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=600, suppress_health_check=[*HealthCheck])
@given(
    seed=SEEDS,
    subject=st.sampled_from(SUBJECTS),
    mutations=st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3),
)
def test_mutated_graphs(
    seed: int, subject: Subject, mutations: list[Mutation], tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    model = subject(rng)
    for mutation in mutations:
        mutation(model, rng)
    note(judge(model.SerializeToString(), tmp_path))


@settings(max_examples=150, suppress_health_check=[*HealthCheck])
@given(seed=SEEDS, subject=st.sampled_from(SUBJECTS))
def test_damaged_files(seed: int, subject: Subject, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    data = subject(rng).SerializeToString()
    note(judge(damage_bytes(data, rng), tmp_path))


def test_most_subjects_are_pruned(tmp_path: Path) -> None:
    """The mutations start from something that works."""
    outcomes = Counter(
        judge(subject(np.random.default_rng(seed)).SerializeToString(), tmp_path)
        for seed in range(10)
        for subject in SUBJECTS
    )
    assert outcomes["pruned"] > 25, outcomes
