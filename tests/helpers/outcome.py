"""How a command of the command line ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *words: str) -> None:
        """Check that it ended with one clear line and nothing else."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("onnxprune: error: ")
        for word in words:
            assert word in self.err
