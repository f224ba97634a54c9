"""How many threads numpy's matrix products use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["matrix_threads"]


@contextmanager
def matrix_threads(threads: int) -> Iterator[None]:
    """Limit the threads of numpy's matrix products for a while.

    Args:
        threads: how many there are for everything; matrix products take half of them, and one for
            0. Those that wait for each other on a machine that is busy with something else can be
            ten times slower than one, and how many there are would change the last digits of the
            result.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=max(threads // 2, 1), user_api="blas"):
        yield
