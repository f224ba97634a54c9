"""How much the readers of a unit lose when they may be solved anew: an error curve for each group.

    score_j = sum_c tr(W_cj K_cj W_cj') / var(y_c)        K_cj = ([H_c^-1]_jj)^-1

refreshed after each removal (see `compensation/regression/elimination.py`), so that the
sum of the scores of removed units is the error of the readers with the best weights there are.
Source: Hassibi & Stork 1993 (optimal brain surgeon), over blocks as in Kurtic et al. 2023 (ZipLM),
summed over the consumers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onnxprune.importance.activation import Variance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from onnxprune.coupling.group_view import GroupView


class Reconstruction:
    """Error of the readers after they were solved anew."""

    name: ClassVar[str] = "reconstruction"
    needs_calibration: ClassVar[bool] = True
    comparable: ClassVar[bool] = True
    measures_curves: ClassVar[bool] = True

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]: without covariances, the error of replacing units by their mean."""
        return Variance().score(group, rng)
