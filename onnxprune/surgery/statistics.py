"""Statistics over an axis that was cut: they go on counting the removed entries as zeros.

Before (mean over 64 entries, 16 of them to go), after::

    m = ReduceMean(x[.., 64])           m = ReduceMean(x'[.., 48]) * 48/64
    y = LayerNormalization(x, g, b)     y = LayerNormalization(Pad(x', 16), Pad(g', 16), ...)[:48]

Formula: sum(x) / 64 = mean(x') * 48 / 64 when the removed entries are zero, which makes the result
equal to the original with the removed slices at zero. Where they are not (the second mean of a
decomposed layer normalisation sees the negative mean there), statistics run over what is kept, in
the masked model too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.coupling.cut import Cut, CutError
from onnxprune.coupling.step import Statistic
from onnxprune.surgery.integers import Editor

_FIRST_OPSET = 13


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
            _widen(editor, node, cut, statistic, count, kept)
        else:
            _rescale(editor, node, cut, kept / count)


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
        axis = ir.AttrInt64("axis", statistic.axis)
        gather = ir.Node("", "Gather", [node.inputs[0], index], [axis], num_outputs=1)
        _insert_before(editor, node, 0, gather)
        _rescale(editor, node, cut, kept / count)


def _nodes(model: ir.Model) -> dict[str, ir.Node]:
    return {value.name: node for node in model.graph for value in node.outputs if value.name}


def _counts(cut: Cut, statistic: Statistic) -> tuple[int, int]:
    alive = cut.alive_along(statistic.tensor, statistic.axis)
    return int(alive.sum()), len(alive)


def _rescale(editor: Editor, node: ir.Node, cut: Cut, factor: float) -> None:
    """Multiply the output of a node; the product takes over its name."""
    output = node.outputs[0]
    dtype = output.dtype.numpy() if output.dtype is not None else np.dtype(np.float32)
    value = editor.add_initializer(f"{output.name}/kept_share", np.array(factor, dtype))
    _follow(editor, node, output, ir.Node("", "Mul", [output, value], num_outputs=1))


def _widen(
    editor: Editor, node: ir.Node, cut: Cut, statistic: Statistic, count: int, kept: int
) -> None:
    """Run a node at the original width: pad what is narrower, cut the outputs back."""
    shapes = cut.coupling.facts.first.shapes
    rank = len(shapes[statistic.tensor])
    for slot, value in enumerate(list(node.inputs)):
        if value is None or not value.name or value.name not in shapes:
            continue
        own = statistic.axis - rank + len(shapes[value.name])
        if own >= 0 and shapes[value.name][own] == count and cut.touches(value.name):
            pads = [0] * (2 * len(shapes[value.name]))
            pads[len(shapes[value.name]) + own] = count - kept
            amounts = editor.add_initializer(f"{statistic.node}/pads_{slot}", np.array(pads))
            pad = ir.Node("", "Pad", [value, amounts], num_outputs=1)
            _insert_before(editor, node, slot, pad)
    for output in list(node.outputs):
        if output.name and cut.touches(output.name):
            bounds = _bounds(editor, f"{output.name}/kept", (0, kept, statistic.axis))
            _follow(editor, node, output, ir.Node("", "Slice", [output, *bounds], num_outputs=1))


def _bounds(editor: Editor, name: str, values: Sequence[int]) -> list[ir.Value]:
    return [editor.add_initializer(f"{name}_{i}", np.array([v])) for i, v in enumerate(values)]


def _insert_before(editor: Editor, node: ir.Node, slot: int, made: ir.Node) -> None:
    made.outputs[0].name = editor.unique_name(f"{node.outputs[0].name}/input_{slot}")
    editor.graph.insert_before(node, made)
    node.replace_input_with(slot, made.outputs[0])


def _follow(editor: Editor, node: ir.Node, output: ir.Value, made: ir.Node) -> None:
    """Put a node behind an output; its result takes over the name."""
    name = output.name or ""
    result = made.outputs[0]
    editor.graph.insert_after(node, made)
    output.replace_all_uses_with(result, replace_graph_outputs=True)
    made.replace_input_with(0, output)
    output.name = editor.unique_name(f"{name}/full")
    result.name = name
