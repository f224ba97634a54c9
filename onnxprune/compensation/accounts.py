"""What compensation did about every layer of a cut, and why it left some alone.

A layer is a node that multiplies what it reads with a weight: a constant, or what follows from
constants alone. It is cut when the weight is. Least squares accounts for the layers it looks at;
this file adds what they cost, and every other layer that is cut, with the reason. Where neither
weights nor a bias make up for what a node has read, as in a recurrent layer, that is said too.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.moments import Tap
from onnxprune.compensation.least_squares import NO_RUN, NOTHING_LOST, LayerFit
from onnxprune.compensation.regression.linear_layers import (
    NoRegressionError,
    regression_of,
    why_weight_stays,
)
from onnxprune.cost.macs import node_macs
from onnxprune.coupling.analysis import Analysis, tap_at
from onnxprune.coupling.cut import Cut
from onnxprune.coupling.labels import AxisLabel
from onnxprune.coupling.step import Consumer
from onnxprune.coupling.trace import Coupling
from onnxprune.model.bodies import node_id, subgraphs
from onnxprune.surgery.editable_model import ADDED_TO
from onnxprune.surgery.linear import LINEAR_OPS

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)


def accounted(analysis: Analysis, cut: Cut, fits: Sequence[LayerFit]) -> tuple[LayerFit, ...]:
    """Fits with what the layers cost, and the layers that are cut but were not looked at.

    Args:
        analysis: the model before compensation.
        cut: what is removed.
        fits: of the layers that least squares looked at.

    Returns:
        those fits in their order, and behind them the others in the order of the graph.
    """
    # a bias that was added as a node of its own has taken over the name of the layer
    found = {fit.node.partition(ADDED_TO)[0]: fit for fit in fits}
    opset = analysis.model.opset_imports.get("", 1)
    shape_of = analysis.coupling.facts.first.shapes.__getitem__
    others: list[LayerFit] = []
    for layer in _layers(analysis.model.graph, analysis.coupling):
        name, macs = node_id(layer.node), node_macs(layer.node, shape_of)
        is_cut = any(cut.touches(weight) for weight in layer.weights)
        if name in found:
            found[name] = replace(found[name], node=name, cut=is_cut, macs=macs)
        elif is_cut and macs:
            reason = _reason(layer, analysis.coupling, opset)
            others.append(LayerFit(name, np.nan, np.nan, False, reason, True, macs))
    return (*found.values(), *others)


def unfolded(
    analysis: Analysis, cut: Cut, moments: Container[Tap], fits: Sequence[LayerFit] = ()
) -> dict[str, str]:
    """Layers that read removed units while nothing makes up for them -> the reason.

    Products of two activations are none of them: what is removed there has no weight.

    Args:
        analysis: the model before compensation.
        cut: what is removed.
        moments: where there are statistics.
        fits: of the layers that were re-fitted, if any.
    """
    coupling = analysis.coupling
    done = {fit.node for fit in fits if fit.solved or fit.reason == NOTHING_LOST}
    layers = {node_id(layer.node): layer for layer in _layers(analysis.model.graph, coupling)}
    reasons: dict[str, str] = {}
    for consumer in coupling.consumers:
        layer, removed = layers.get(consumer.node), _removed_from(consumer, cut)
        if layer is None or consumer.node in done or not removed:
            continue
        if consumer.weight is None and not layer.worked_out:
            continue  # a sum, or a product of two activations
        node = layer.node
        if node.domain or node.op_type not in LINEAR_OPS:
            reasons[consumer.node] = f"{node.op_type} has no bias that could take the means"
        elif consumer.weight is None:
            reasons[consumer.node] = layer.worked_out
        elif any(tap_at(coupling, consumer, label.axes) not in moments for label in removed):
            along = any(0 in label.axes for label in removed)
            reasons[consumer.node] = "its units lie along the samples" if along else NO_RUN
    return reasons


@dataclass(frozen=True)
class _Layer:
    """A node that reads weights.

    Attributes:
        node: the node.
        weights: the names of its operands that are constants, or follow from them.
        worked_out: why its weight has no value to start from; empty where it has.
    """

    node: ir.Node
    weights: tuple[str, ...]
    worked_out: str


def _layers(graph: ir.Graph, coupling: Coupling) -> Iterator[_Layer]:
    """Nodes without bodies that read something constant, those in bodies included."""
    fixed = set(coupling.facts.constants)
    for node in coupling.nodes(graph):
        values = [value for value in node.inputs if value is not None and value.name]
        known = [value for value in values if value.name in fixed]
        if not known or subgraphs(node):
            continue
        if len(known) < len(values):
            names = tuple(value.name or "" for value in known)
            yield _Layer(node, names, _made_by(known, coupling))
        elif node.op_type not in _RANDOM:
            fixed.update(value.name for value in node.outputs if value.name)


def _made_by(weights: Sequence[ir.Value], coupling: Coupling) -> str:
    """Why a weight counts as an activation: it follows from constants in a way of its own."""
    for value in weights:
        labels, node = coupling.tensors.get(value.name or ""), value.producer()
        if node is not None and labels is not None and not labels.constant and labels.axis_labels:
            return f"its weight is worked out by {node.op_type}"
    return ""


def _removed_from(consumer: Consumer, cut: Cut) -> list[AxisLabel]:
    """Labels of what a consumer sums over that lose something."""
    labels = cut.coupling.tensors[consumer.tensor].axis_labels
    return [label for label in labels if consumer.axis in label.axes and not cut.alive(label).all()]


def _reason(layer: _Layer, coupling: Coupling, opset: int) -> str:
    """Why a layer was not looked at; those that are replaceable compute what is left as before."""
    try:
        return why_weight_stays(regression_of(layer.node, coupling, opset)) or NOTHING_LOST
    except NoRegressionError as error:
        return layer.worked_out or str(error)
