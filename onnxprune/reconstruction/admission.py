"""How many batches a walk can hold: few where activations are wide, more behind.

A convolutional network has its widest activations in front, where one sample gives thousands of
rows, and its widest weights in the back, where one gives a few dozen. So a walk starts with as many
batches as fit at the widest place, and takes others along later, where rows are short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxprune.calibration.sweep import WALK_BYTES, cuts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxprune.model.observe import Observation

__all__ = ["Admission"]

_ROWS_PER_UNKNOWN = 10
_LEAST_GROWTH = 1.5


class Admission:
    """Decides how many of the batches walks hold together.

    Args:
        graph: the original's main graph.
        observed: its traced shapes, and the feed they belong to.
        feeds: all batches.
        walks: how many walks hold them at a time.
        largest: bytes that activations of all walks may take together.
    """

    def __init__(
        self,
        graph: ir.Graph,
        observed: Observation,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        walks: int,
        largest: int = WALK_BYTES,
    ) -> None:
        self._largest = largest
        traced = max(_bytes(observed.feed), 1)
        self._scales = [walks * _bytes(feed) / traced for feed in feeds]
        self._widest: dict[str, int] = {}
        most = 0
        for node, live in reversed(cuts(graph, observed.shapes)):
            most = max(most, live)
            self._widest |= {value.name or "": most for value in node.outputs}
        self._most = most

    @property
    def at_start(self) -> int:
        """Number of batches that fit everywhere, at least one."""
        return self._fitting(self._most)

    def at(self, node: ir.Node, held: int, rows: int, unknowns: int, wanted: int) -> int:
        """Number of batches to hold from a node on.

        Args:
            node: a node that is about to be measured.
            held: number of batches that are held.
            rows: rows they give there.
            unknowns: of the regression.
            wanted: most rows that are of use.
        """
        wanted = min(wanted, _ROWS_PER_UNKNOWN * unknowns)
        needed = -(-wanted * held // max(rows, 1))
        name = node.outputs[0].name or ""
        count = min(needed, self._fitting(self._widest.get(name, self._most)))
        # each time the whole way up to here is run again
        return count if count >= _LEAST_GROWTH * held else held

    def _fitting(self, widest: int) -> int:
        total = 0.0
        for number, scale in enumerate(self._scales):
            total += scale * widest
            if total > self._largest and number:
                return number
        return len(self._scales)


def _bytes(feed: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.nbytes for array in feed.values())
