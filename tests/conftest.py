"""The same Hypothesis examples on every machine and in every run; a timing cache of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "onnxprune",
    derandomize=True,
    deadline=None,
    print_blob=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("onnxprune")


@pytest.fixture(scope="session", autouse=True)
def _timings_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test, and no process it starts, touches the user's cache of timings."""
    folder = tmp_path_factory.mktemp("timings")
    os.environ["ONNXPRUNE_CACHE"] = str(folder)
    yield folder
    del os.environ["ONNXPRUNE_CACHE"]
