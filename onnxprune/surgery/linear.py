"""The linear nodes that read pruned channels, run one by one: what would the removed have added?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model.execution import open_session, run
from onnxprune.model.runtime import Runtime

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
"""Ops of the default domain that multiply an activation with a weight."""

ADDED_TO = "/before_bias"
"""What the name of a tensor is followed by once something is added to it under its own name."""


def linear_node(nodes: Mapping[str, ir.Node], name: str) -> ir.Node | None:
    """Node that makes a tensor, behind terms which compensation has added to it.

    Args:
        nodes: node by the name of what it makes.
        name: id of the node when the model was traced: the sum has taken over its first output.
    """
    node = nodes.get(name)
    while node is not None and node.op_type == "Add" and node.inputs[0] is not None:
        inner = node.inputs[0].name or ""
        if not inner.startswith(f"{name}{ADDED_TO}"):
            break
        node = nodes.get(inner)
    return node


def apply_linear(
    node: ir.Node, opset: int, data: NDArray[Any], weight: NDArray[Any], slot: int
) -> NDArray[np.float64]:
    """Run a node alone, without its bias, in onnxruntime: every attribute means what it means.

    Args:
        node: a node of `LINEAR_OPS`.
        opset: version of the default domain.
        data: the activation.
        weight: the weight.
        slot: input slot of the weight, 0 or 1.

    Returns:
        The node's output without bias.
    """
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(["weight", "data"] if slot == 0 else ["data", "weight"])
    proto.output.append("result")
    feed = {"data": data.astype(np.float32), "weight": weight.astype(np.float32)}
    if node.op_type == "Gemm":  # required before opset 11
        proto.input.append("bias")
        feed["bias"] = np.zeros(1, np.float32)
    graph = onnx.helper.make_graph(
        [proto],
        "linear",
        [onnx.helper.make_tensor_value_info(n, 1, v.shape) for n, v in feed.items()],
        [onnx.ValueInfoProto(name="result")],
    )
    imports = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = open_session(model, Runtime(threads=1), optimise=False)
    return run(session, feed)["result"].astype(np.float64)


def axes_of_weight(node: ir.Node, slot: int, weight_shape: tuple[int, ...], rank: int) -> list[int]:
    """Output axes whose positions the weight makes: a bias may differ along these only.

    Args:
        node: a node of `LINEAR_OPS`.
        slot: input slot of the weight.
        weight_shape: its shape.
        rank: rank of the output.
    """
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return [1]
    if node.op_type == "Einsum":
        inputs, arrow, output = (
            node.attributes["equation"].as_string().replace(" ", "").partition("->")
        )
        if not arrow:
            output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
        letters = inputs.split(",")[slot]
        return [axis for axis, letter in enumerate(output) if letter in letters]
    if len(weight_shape) == 1:
        return []
    made = rank - 1 if slot else rank - 2
    batch = [
        rank - len(weight_shape) + i for i, extent in enumerate(weight_shape[:-2]) if extent > 1
    ]
    return [*batch, made]
