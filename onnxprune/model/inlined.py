"""Where constants come from that exist only since calls of local functions were inlined.

A constant inside a function becomes one of the main graph for each call, under a name that the file
does not have. Marks in the metadata of nodes, which inlining hands on, tell which is which; they
are gone before anything else looks at the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

_CONSTANT, _CALL = "onnxprune/constant", "onnxprune/call/"


@dataclass(frozen=True)
class InlinedConstant:
    """A constant of a function, at one call.

    Attributes:
        call: name of the node that calls the function, or of its first output where it has none; of
            calls within calls, the outermost first, separated by "/".
        function: the function, as domain::name.
        name: of the constant in the function.
    """

    call: str
    function: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.function}, called at {self.call}"


def inlined_constants(
    model: ir.Model, inline: Callable[[ir.Model], object]
) -> dict[str, InlinedConstant]:
    """Inline functions, and tell where the constants come from.

    Args:
        model: changed by `inline`.
        inline: inlines calls, in place; names of the main graph's values are final behind it.

    Returns:
        by name in the main graph or a body of it.
    """
    for function in model.functions.values():
        called = f"{function.domain}::{function.name}"
        for node in function.all_nodes():
            if node.op_type == "Constant" and not node.domain:
                node.metadata_props[_CONSTANT] = json.dumps([called, node.outputs[0].name])
        _mark_calls(model, function.all_nodes(), called)
    _mark_calls(model, model.graph.all_nodes(), "")
    inline(model)
    found = {}
    for node in model.graph.all_nodes():
        calls = [node.metadata_props[key] for key in _marks(node) if key != _CONSTANT]
        if _CONSTANT in node.metadata_props:
            function, name = json.loads(node.metadata_props[_CONSTANT])
            found[node.outputs[0].name or ""] = InlinedConstant("/".join(calls), function, name)
        _clear(node)
    for function in model.functions.values():
        for node in function.all_nodes():
            _clear(node)
    return found


def _mark_calls(model: ir.Model, nodes: Iterator[ir.Node], within: str) -> None:
    """Note at each call what it is called; calls in different functions under different keys."""
    for node in nodes:
        if node.op_identifier() in model.functions:
            node.metadata_props[_CALL + within] = node.name or node.outputs[0].name or ""


def _marks(node: ir.Node) -> list[str]:
    keys = (key for key in node.metadata_props if key.startswith(_CALL) or key == _CONSTANT)
    return list(keys)


def _clear(node: ir.Node) -> None:
    for key in _marks(node):
        del node.metadata_props[key]
