"""How many threads numpy's matrix products use.

Two spinning threads on a machine that is busy with something else can be ten times slower than one,
so unless the user says how many, one thread and all are timed and the faster is taken.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["matrix_threads"]

_ROUNDS = 3
_EXTENT = 512


@contextmanager
def matrix_threads(threads: int) -> Iterator[None]:
    """Limit the threads of numpy's matrix products for a while.

    Args:
        threads: how many; 0 takes the faster of one and all, by a quick timing.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads or _faster(), user_api="blas"):
        yield


def _faster() -> int | None:
    """One, or None for all."""
    from threadpoolctl import threadpool_limits

    factor = np.ones((_EXTENT, _EXTENT * 4), np.float32)
    taken: dict[int | None, list[float]] = {1: [], None: []}
    for _ in range(_ROUNDS):
        for limit, times in taken.items():
            with threadpool_limits(limits=limit, user_api="blas"):
                started = time.perf_counter()
                factor @ factor.T
                times.append(time.perf_counter() - started)
    return 1 if np.median(taken[1]) <= np.median(taken[None]) else None
