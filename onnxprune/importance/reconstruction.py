"""Error of the readers of a group after re-fitting them, as an error curve for each group.

    score_j = sum_c tr(W_cj K_cj W_cj') / var(y_c)        K_cj = ([H_c^-1]_jj)^-1

refreshed after each removal (see `compensation/regression/elimination.py`), so that the
sum of the scores of removed units is the error of the readers with the best weights there are.
Source: Hassibi & Stork 1993 (optimal brain surgeon), over blocks as in Kurtic et al. 2023 (ZipLM),
summed over the consumers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxprune.coupling.groups import Group
from onnxprune.importance.criterion import Criterion, RankingInputs
from onnxprune.importance.curves import Curve, part_curves, whole_curve
from onnxprune.importance.removal_order import RankedGroup
from onnxprune.importance.survey import Survey


class Reconstruction(Criterion):
    """Error of the readers after they were re-fitted."""

    name = "reconstruction"
    needs_calibration = True
    comparable = True
    measures_curves = True

    def rank(self, inputs: RankingInputs, groups: Sequence[Group]) -> list[RankedGroup]:
        """Measure covariances at every reader in one walk, and eliminate units on them.

        Parts of a group are ranked too, unless the orders end at a goal.
        """
        feeds = inputs.calibration.feeds if inputs.calibration is not None else ()
        known = inputs.calibration.sensitivity if inputs.calibration is not None else None
        survey = Survey(inputs.analysis, feeds, inputs.context, sensitivity=known)
        views = inputs.views(groups)
        ranked: dict[int, RankedGroup] = {}
        for number, regressions in survey.groups(groups):
            view = views[number]
            whole = _ranked(view.group, whole_curve(view, regressions, inputs.goal))
            parts = [] if inputs.goal is not None else part_curves(view, regressions)
            ranked[number] = replace(whole, parts=tuple(_ranked(view.group, p) for p in parts))
        return [ranked[number] for number in range(len(groups))]


def _ranked(group: Group, curve: Curve) -> RankedGroup:
    return RankedGroup(group, curve.steps, curve.scalings())
