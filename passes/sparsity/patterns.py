"""Patterns of zeros in a weight matrix, rows = outputs, columns = inputs.

    unstructured    any weight
    2:4, 4:8, N:M   of every M weights of a row, one after another, N stay
    4x1, 16x16, RxC whole blocks of R outputs and C inputs

Source: Mishra et al. 2021 (N:M); Gray et al. 2017 (blocks).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import InputError

_UNSTRUCTURED = "unstructured"
_RATIO = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie.

    Attributes:
        rows: outputs of a block.
        columns: inputs of a block; those of one group of N:M.
        kept: how many of the `columns` of a row stay; None where whole blocks become zero.
    """

    rows: int = 1
    columns: int = 1
    kept: int | None = None

    @property
    def amount(self) -> float | None:
        """The share of zeros that an N:M pattern fixes; None for other patterns."""
        return None if self.kept is None else 1 - self.kept / self.columns

    def mask(self, scores: NDArray[np.float64], amount: float) -> NDArray[np.bool_]:
        """Which weights stay: those of the highest scores.

        Args:
            scores: of each weight, [outputs, inputs]; blocks are compared by their mean. Where the
                shape is no multiple of the block, those at the end are smaller.
            amount: share of blocks that become zero; N:M patterns have their own.
        """
        if self.kept is not None:
            return self._of_each_group(scores)
        blocks = self.block_scores(scores)
        removed = np.argsort(blocks, axis=None, kind="stable")[: round(amount * blocks.size)]
        stays = np.ones(blocks.size, bool)
        stays[removed] = False
        return self._spread(stays.reshape(blocks.shape), scores.shape)

    def block_scores(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean score of each block, [blocks of outputs, blocks of inputs]."""
        starts = [np.arange(0, n, b) for n, b in zip(scores.shape, self._block(), strict=True)]
        sums = np.add.reduceat(np.add.reduceat(scores, starts[0], axis=0), starts[1], axis=1)
        sides = [np.diff([*start, n]) for start, n in zip(starts, scores.shape, strict=True)]
        return np.asarray(sums / np.multiply.outer(*sides))

    def _block(self) -> tuple[int, int]:
        return self.rows, 1 if self.kept is not None else self.columns

    def _of_each_group(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        assert self.kept is not None
        stays = np.zeros(scores.shape, bool)
        for start in range(0, scores.shape[1], self.columns):
            part = scores[:, start : start + self.columns]
            count = -(-self.kept * part.shape[1] // self.columns)
            best = np.argsort(-part, axis=1, kind="stable")[:, :count] + start
            np.put_along_axis(stays, best, True, axis=1)
        return stays

    def _spread(self, blocks: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        rows, columns = self._block()
        whole = np.repeat(np.repeat(blocks, rows, axis=0), columns, axis=1)
        return whole[: shape[0], : shape[1]]


def parse_pattern(text: str) -> Pattern:
    """Read the name of a pattern.

    Raises:
        InputError: when no pattern has this name.
    """
    if text == _UNSTRUCTURED:
        return Pattern()
    if match := _RATIO.fullmatch(text):
        kept, columns = int(match[1]), int(match[2])
        if 0 < kept < columns:
            return Pattern(1, columns, kept)
    if (match := _BLOCK.fullmatch(text)) and int(match[1]) and int(match[2]):
        return Pattern(int(match[1]), int(match[2]))
    raise InputError(
        f"unknown pattern {text!r}; a pattern is {_UNSTRUCTURED}, N:M such as 2:4 (N of every M "
        "inputs stay), or RxC such as 4x1 (blocks of R outputs and C inputs)"
    )
