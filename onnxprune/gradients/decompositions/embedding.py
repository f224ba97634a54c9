"""Tables of embeddings fused with the normalisation of their sum.

Source: onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.gradients.decompositions.fused import Decomposition, Fused, body

_AXES_AS_INPUT = 13


def _normalised_sum(node: Fused) -> Decomposition:
    """EmbedLayerNormalization: of words, positions and, if there are, segments."""
    text = "words = Gather(table, ids) "
    if node.has(8):
        text += "places = Gather(positions, at) "
    else:
        text += """size = Shape(ids) one = Constant<value = int64[1] {1}>()
            zero = Constant<value = int64[1] {0}>() length = Gather(size, one)
            places = Slice(positions, zero, length, zero) """
    if node.has(1):
        text += "s = Add(words, places) parts = Gather(segments, kinds) sum = Add(s, parts) "
    else:
        text += "sum = Add(words, places) "
    epsilon = float(node.attribute("epsilon", 1e-12))
    text += f"y = LayerNormalization<axis = -1, epsilon = {epsilon}>(sum, scale, shift) "
    text += "kept = Identity(mask) " if node.has(7) else "kept = Sub(ids, ids) "
    if node.opset < _AXES_AS_INPUT:
        text += "lengths = ReduceSum<axes = [1], keepdims = 0>(kept)"
    else:
        text += """along = Constant<value = int64[1] {1}>()
            lengths = ReduceSum<keepdims = 0>(kept, along)"""
    inputs = "ids, kinds, table, positions, segments, scale, shift, mask, at"
    return body(inputs, "y, lengths, sum", text)


BODIES: dict[tuple[str, str], Callable[[Fused], Decomposition]] = {
    ("com.microsoft", "EmbedLayerNormalization"): _normalised_sum
}
"""Body of every operator, by domain and name."""
