"""What the loss changes by when a unit goes, estimated from gradients.

    taylor: score_j = E |g_j|            fisher: score_j = E[g_j^2] / 2

g_j is the derivative of one sample's loss with respect to a mask of one on unit j, at the inputs of
all its readers (`onnxprune.gradients.masks`); E averages over samples.

Taylor is the first-order change of the loss, its size taken sample by sample: on a trained network
signed changes cancel. Source: Molchanov et al. 2017, eq. 8, as a sum over places, without the
normalisation by layer, as the masks of all layers have the same unit. Fisher is the second-order
change, with the Hessian replaced by the Fisher information. Source: Theis et al. 2018; Kwon et al.
2022 for masks; Molchanov et al. 2019 call its double Taylor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.coupling.group_view import GroupView, MaskGradients
from onnxprune.errors import InputError
from onnxprune.importance.criterion import ScoreCriterion


class _GradientCriterion(ScoreCriterion):
    """Looks at gradients of the loss with respect to a mask on the units."""

    needs_calibration = True
    needs_gradients = True
    comparable = True


class Taylor(_GradientCriterion):
    """First-order change of the loss."""

    name = "taylor"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return _gradients(group).mean_magnitude


class Fisher(_GradientCriterion):
    """Second-order change of the loss."""

    name = "fisher"

    def score(self, group: GroupView, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return float [size]."""
        return _gradients(group).mean_square / 2


def _gradients(group: GroupView) -> MaskGradients:
    if group.gradients is None:
        raise InputError(f"{group.group.name}: no gradients; give --calibration")
    return group.gradients
