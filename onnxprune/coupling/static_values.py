"""Which integers follow from constants and shapes; the others may be different at the next input.

An observed number is only believed when it is the same for every input of that size. Sizes can
vary with the input as well (NonZero): the shape of such a tensor says as little as a number would.
"""

from __future__ import annotations

from collections.abc import Container, Sequence, Set

import onnx_ir as ir

from onnxprune.model.bodies import read_from_outside, subgraphs
from onnxprune.model.observe import Facts

_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_COUNTING = frozenset({"Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "Unique"})
# Their outputs are as large as the numbers in these inputs say.
_SIZES: dict[str, Sequence[int]] = {
    **dict.fromkeys(("Expand", "OneHot", "Reshape", "Split", "Tile", "TopK", "Upsample"), (1,)),
    **dict.fromkeys(("CenterCropPad", "Squeeze", "Unsqueeze"), (1,)),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "MaxUnpool": (2,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
}
# Their outputs are as large as these inputs; a lookup writes as many entries as it is given.
_LIKE: dict[str, int] = {
    **dict.fromkeys(("Scatter", "ScatterElements", "ScatterND"), 0),
    "GatherElements": 1,
}


def static_values(graph: ir.Graph, facts: Facts, closed: Container[ir.Node]) -> frozenset[str]:
    """Tensors whose values follow from constants and from shapes that do not depend on data.

    Args:
        graph: the main graph.
        facts: constants, those of bodies included.
        closed: nodes whose bodies are not looked into.
    """
    static, varying = set(facts.constants), set[str]()
    _follow(graph, static, varying, closed)
    return frozenset(static)


def _follow(
    graph: ir.Graph, static: set[str], varying: set[str], closed: Container[ir.Node]
) -> None:
    for node in graph:
        given = [(value.name or "") if value is not None else "" for value in node.inputs]
        made = [value.name for value in node.outputs if value.name]
        read = {name for name in given if name}
        bodies = subgraphs(node)
        for body in bodies if node not in closed else ():
            if varying & {*read, *read_from_outside(body)}:
                varying.update(value.name for value in body.inputs if value.name)
            _follow(body, static, varying, closed)
        if node.op_type in ("Shape", "Size") and node.domain == "":
            if not read & varying:
                static.update(made)
        elif read and read <= static and node.op_type not in _RANDOM and not bodies:
            static.update(made)
        elif _varies(node, given, static, varying):
            varying.update(made)


def _varies(node: ir.Node, given: Sequence[str], static: Set[str], varying: Set[str]) -> bool:
    """Whether the shapes of what a node makes depend on data."""
    if node.op_type in _COUNTING and node.domain == "":
        return True
    sizes = _SIZES.get(node.op_type, ())
    if any(given[slot] and given[slot] not in static for slot in sizes if slot < len(given)):
        return True
    like = _LIKE.get(node.op_type)
    return any(name in varying for slot, name in enumerate(given) if like in (None, slot))
