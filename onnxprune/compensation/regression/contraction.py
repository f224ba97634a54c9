"""Gemm, MatMul and Einsum as regressions: axes are named by letters.

Rows are the axes that activation and output share, unknowns the summed ones, outputs those the
weight brings.
"""

from __future__ import annotations

import string
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.compensation.regression.layers import LinearLayer
from onnxprune.coupling.labels import AxisLabel


class Contraction(LinearLayer):
    """One group of rows.

    Raises:
        ValueError: when the node is a stack of products, or no product of this kind at all.
    """

    def __init__(self, node: ir.Node, slot: int, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(node, slot, shapes)
        ranks = [len(shapes[v.name or ""]) if v is not None else 0 for v in node.inputs[:2]]
        terms = letters_of(node, ranks)
        self._read, self._made, self._output = terms[1 - slot], terms[slot], terms[2]
        summed = [c for c in self._made if c not in self._output]
        own = [c for c in self._made if c in self._output and c not in self._read]
        kept = [c for c in self._output if c not in own]
        if {*self._made} != {*summed, *own} or {*self._read} != {*summed, *kept}:
            raise ValueError("weights differ between rows")
        if not own or not summed:
            raise ValueError("nothing is summed")
        self._summed, self._own, self._kept = "".join(summed), "".join(own), "".join(kept)
        self._extents = dict(zip(self._made, self.weight_shape, strict=True))
        if any(self._extents[c] != self.data_shape[self._read.index(c)] for c in summed):
            raise ValueError("a summed axis is broadcast")
        self.output_axes = tuple(self._output.index(c) for c in own)
        made, read = (prod(self._extents[c] for c in letters) for letters in (own, summed))
        self.shape = (1, made, read)
        alpha = node.attributes.get("alpha") if node.op_type == "Gemm" else None
        self._alpha = 1.0 if alpha is None else alpha.as_float()
        if not self._alpha:
            raise ValueError("the product counts nothing")

    def row_count(self, output_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return prod(output_shape[self._output.index(c)] for c in self._kept)

    def rows_of(self, data_shape: tuple[int, ...]) -> int:
        """See `LinearLayer`."""
        return prod(data_shape[self._read.index(c)] for c in self._kept)

    def rows(self, data: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        return self._select(data, self._read, self._summed, ids)

    def outputs(self, output: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `LinearLayer`."""
        return self._select(output, self._output, self._own, ids)

    def matrix(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        moved = weight.transpose([self._made.index(c) for c in self._own + self._summed])
        unknowns = prod(self._extents[c] for c in self._summed)
        return self._alpha * moved.reshape(1, -1, unknowns).astype(np.float64)

    def tensor(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        letters = self._own + self._summed
        array = matrix.reshape([self._extents[c] for c in letters]) / self._alpha
        return array.transpose([letters.index(c) for c in self._made])

    def bias_along_output(self, bias: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `LinearLayer`."""
        array = bias.reshape([self._extents[c] for c in self._own])
        order = sorted(range(len(self._own)), key=lambda i: self._output.index(self._own[i]))
        along = [self._extents[c] if c in self._own else 1 for c in self._output]
        return array.transpose(order).reshape(along)

    def unknowns(self, label: AxisLabel, values: NDArray[Any]) -> NDArray[Any] | None:
        """See `LinearLayer`."""
        letters = [self._read[axis] for axis in label.axes]
        if not {*letters} <= {*self._summed}:
            return None
        order = [letters.index(c) for c in self._summed if c in letters]
        along = [self._extents[c] if c in letters else 1 for c in self._summed]
        whole = [self._extents[c] for c in self._summed]
        return np.broadcast_to(values.transpose(order).reshape(along), whole).reshape(1, -1)

    def _select(
        self, array: NDArray[Any], letters: str, last: str, ids: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        flat = array.transpose([letters.index(c) for c in self._kept + last])
        flat = flat.reshape(-1, prod(self._extents[c] for c in last))
        return flat[ids].astype(np.float32)[:, np.newaxis]


def letters_of(node: ir.Node, ranks: list[int]) -> tuple[str, str, str]:
    """Letters of the axes of both inputs and of the output of a Gemm, MatMul or Einsum.

    Args:
        node: the node.
        ranks: of its two inputs.

    Raises:
        ValueError: for a product with a vector, or an Einsum of another kind.
    """
    if node.op_type == "Einsum":
        equation = node.attributes["equation"].as_string().replace(" ", "")
        inputs, _, output = equation.partition("->")
        if inputs.count(",") != 1:
            raise ValueError("an Einsum of more than two tensors")
        if "->" not in equation:
            output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
        first, _, second = inputs.partition(",")
        if "." in equation or any(len({*t}) != len(t) for t in (first, second, output)):
            raise ValueError("an Einsum with an ellipsis or a repeated letter")
        return first, second, output
    if node.op_type == "Gemm":
        left, right = (node.attributes.get(key) for key in ("transA", "transB"))
        return (
            "ki" if left is not None and left.as_int() else "ik",
            "jk" if right is not None and right.as_int() else "kj",
            "ij",
        )
    if min(ranks) < 2:
        raise ValueError("a product with a vector")
    batch = string.ascii_lowercase[: max(ranks) - 2]
    first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return f"{first}xy", f"{second}yz", f"{batch}xz"
