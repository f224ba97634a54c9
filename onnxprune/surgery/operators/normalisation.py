"""Normalisation: groups of channels, and statistics over an axis that was cut.

Statistics over a cut axis go on counting the removed entries as zeros.

Before (mean over 64 entries, 16 of them to go), after::

    m = ReduceMean(x[.., 64])           m = ReduceMean(x'[.., 48]) * 48/64
    y = LayerNormalization(x, g, b)     y = LayerNormalization(Pad(x', 16), Pad(g', 16), ...)[:48]

Formula: sum(x) / 64 = mean(x') * 48 / 64 when the removed entries are zero, which makes the result
equal to the original with the removed slices at zero. Where they are not (the second mean of a
decomposed layer normalisation sees the negative mean there), statistics run over what is kept, in
the masked model too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.step import Statistic
from onnxprune.surgery.editor import Editor
from onnxprune.surgery.operators.site import Site, SizeTable

_FIRST_OPSET = 13
"""Pad, Slice and ReduceMean take what they need as inputs from here on."""


def keep_statistics(model: ir.Model, cut: Cut) -> None:
    """Rescale means and widen normalisations in the sliced model, in place."""
    nodes, editor = _nodes(model), Editor(model.graph)
    for statistic in cut.coupling.statistics:
        kept, count = _counts(cut, statistic)
        if kept == count:
            continue
        if model.opset_imports.get("", 1) < _FIRST_OPSET:
            raise CutError(statistic.tensor, "cutting normalised axes needs opset 13 or newer")
        node = nodes[statistic.node]
        if statistic.widened:
            _widen(editor, node, cut, statistic)
        else:
            _rescale(editor, node, kept / count)


def restrict_statistics(model: ir.Model, cut: Cut) -> None:
    """In the masked model, take inexact means over the kept entries only, in place."""
    nodes, editor = _nodes(model), Editor(model.graph)
    for statistic in cut.coupling.statistics:
        kept, count = _counts(cut, statistic)
        if kept == count or statistic.exact:
            continue
        node = nodes[statistic.node]
        alive = np.flatnonzero(cut.alive_along(statistic.tensor, statistic.axis))
        index = editor.add_initializer(f"{statistic.node}/kept", alive)
        _feed(editor, node, 0, "Gather", index, {"axis": statistic.axis})
        _rescale(editor, node, kept / count)


def _nodes(model: ir.Model) -> dict[str, ir.Node]:
    return {value.name: node for node in model.graph for value in node.outputs if value.name}


def _counts(cut: Cut, statistic: Statistic) -> tuple[int, int]:
    alive = cut.alive_along(statistic.tensor, statistic.axis)
    return int(alive.sum()), len(alive)


def _rescale(editor: Editor, node: ir.Node, factor: float) -> None:
    """Multiply the output of a node; the product takes over its name."""
    output = node.outputs[0]
    dtype = output.dtype.numpy() if output.dtype is not None else np.dtype(np.float32)
    value = editor.add_initializer(f"{output.name}/kept_share", np.array(factor, dtype))
    editor.insert_behind(output, "Mul", [value], suffix="/full")


def _widen(editor: Editor, node: ir.Node, cut: Cut, statistic: Statistic) -> None:
    """Run a node at the original width: pad what is narrower, cut the outputs back."""
    kept, count = _counts(cut, statistic)
    shapes = cut.coupling.facts.first.shapes
    rank = len(shapes[statistic.tensor])
    for slot, value in enumerate(list(node.inputs)):
        if value is None or not value.name or value.name not in shapes:
            continue
        own_rank = len(shapes[value.name])
        own = statistic.axis - rank + own_rank
        if own >= 0 and shapes[value.name][own] == count and cut.touches(value.name):
            pads = np.zeros(2 * own_rank, np.int64)
            pads[own_rank + own] = count - kept
            amounts = editor.add_initializer(f"{statistic.node}/pads_{slot}", pads)
            _feed(editor, node, slot, "Pad", amounts)
    for output in list(node.outputs):
        if output.name and cut.touches(output.name):
            bounds = [
                editor.add_initializer(f"{output.name}/kept_{number}", np.array([bound]))
                for number, bound in enumerate((0, kept, statistic.axis))
            ]
            editor.insert_behind(output, "Slice", bounds, suffix="/full")


def _feed(
    editor: Editor,
    node: ir.Node,
    slot: int,
    op_type: str,
    operand: ir.Value,
    attributes: Mapping[str, int] | None = None,
) -> None:
    """Have a node read what `op_type` makes of an input and another operand."""
    name = f"{node.outputs[0].name}/input_{slot}"
    inputs = [node.inputs[slot], operand]
    made = editor.insert_before(node, op_type, inputs, attributes, name=name)
    node.replace_input_with(slot, made)


def _norm_groups(site: Site) -> None:
    """GroupNormalization: channels left / channels of one group, which stay as many."""
    before, after = site.shape()[1], site.new_shape()[1]
    site.put_attribute("num_groups", site.get_int("num_groups", 1) * after // before)


SIZE_RULES: SizeTable = {("", "GroupNormalization"): _norm_groups}
