"""What can be done to the weights of layers once these are solved, before later ones are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from onnxprune.reconstruction.gram import Gram
    from onnxprune.reconstruction.layers import LinearLayer

__all__ = ["Finish"]


class Finish(Protocol):
    """A last step on the weights of some layers; later layers are fitted to what it leaves."""

    def applies(self, layer: LinearLayer) -> bool:
        """Whether weights of this layer are changed; it is then solved whatever it reads."""
        ...

    def finished(
        self, layer: LinearLayer, weight: NDArray[np.float64], gram: Gram
    ) -> NDArray[np.float64]:
        """Weights to take instead.

        Args:
            layer: where they are.
            weight: as solved, [g, O, D].
            gram: sums over all rows.
        """
        ...
