"""How models are to be run: execution providers and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onnxprune.declaration import option
from onnxprune.errors import InputError


@dataclass(frozen=True)
class Runtime:
    """How onnxruntime is to run a model; the attributes are documented where they are declared.

    Attributes:
        batch: rows of the feed that latency is measured on; None for those of the traced feed.
    """

    providers: tuple[str, ...] = option(
        ("CPUExecutionProvider",),
        "onnxruntime execution providers, the preferred one first",
        metavar="NAME[,NAME]",
    )
    threads: int = option(
        0, "threads within an operator; 0 lets onnxruntime decide", metavar="N", least=0
    )
    batch: int | None = None

    def validate(self) -> None:
        """Check the settings against the installed onnxruntime.

        Raises:
            InputError: for an unknown provider (names the available ones) or negative threads.
        """
        import onnxruntime as ort

        available = ort.get_available_providers()
        if not self.providers:
            raise InputError(f"no execution provider given; available: {', '.join(available)}")
        for provider in self.providers:
            if provider not in available:
                raise InputError(
                    f"unknown execution provider {provider!r}; available in this onnxruntime: "
                    f"{', '.join(available)}"
                )
        if self.threads < 0:
            raise InputError(f"threads must be 0 (onnxruntime decides) or more, not {self.threads}")


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
