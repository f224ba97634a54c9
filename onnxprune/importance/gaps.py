"""Where an error curve rests on an estimate: readers that are no regressions, and why.

The error of such a reader is not that of its best new weights but of replacing units by their mean
(`curves.py`); groups with only such readers may be cut more or less than they should.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.compensation.regression.linear_layers import (
    NoRegressionError,
    reading_unknowns,
    regression_of,
)
from onnxprune.coupling.analysis import Analysis
from onnxprune.coupling.groups import Group, Reading
from onnxprune.importance.survey import SurveySettings
from onnxprune.model.bodies import node_id

_ROWS_DIFFER = "its rows differ in what they read of the group"
_ONLY_WEIGHTS = "no layer reads it, so that only its own weights count"


def estimated_readers(
    analysis: Analysis, groups: Iterable[Group], settings: SurveySettings | None = None
) -> dict[str, str]:
    """Readers of groups whose error is an estimate, and groups that nothing reads -> the reason.

    Products of two activations are none of them: their error has a formula of its own.

    Args:
        analysis: the model.
        groups: those that were ranked.
        settings: of the survey.
    """
    largest = (settings or SurveySettings()).largest
    nodes = {node_id(node): node for node in analysis.coupling.nodes(analysis.model.graph)}
    opset = analysis.model.opset_imports.get("", 1)
    reasons: dict[str, str] = {}
    for group in groups:
        if not group.readings:
            reasons[group.name] = _ONLY_WEIGHTS
        for reading in group.readings:
            node = nodes.get(reading.consumer.node)
            if node is not None and reading.consumer.weight is not None:
                reason = _why_estimated(node, reading, analysis, opset, largest)
                if reason:
                    reasons[reading.consumer.node] = reason
    return reasons


def _why_estimated(
    node: ir.Node, reading: Reading, analysis: Analysis, opset: int, largest: int
) -> str:
    """Why a reader gets no regression; empty where it gets one."""
    try:
        layer = regression_of(node, analysis.coupling, opset)
    except NoRegressionError as error:
        return str(error)
    if layer.shape[2] > largest:
        return f"{layer.shape[2]} unknowns are more than {largest}"
    return _ROWS_DIFFER if reading_unknowns(layer, reading) is None else ""
