"""Ops that onnxruntime's optimiser writes (domain com.microsoft): known ops in one."""

from __future__ import annotations

from onnxprune.coupling.labels import Operand, join
from onnxprune.coupling.operators.contraction import contract_operands, gemm, matmul_axes
from onnxprune.coupling.operators.convolution import convolve
from onnxprune.coupling.step import Refusal, RuleTable, Step

_STATISTICS = "LayerNormalization takes statistics over it"
_ZERO_TO_ZERO = frozenset({"Relu", "LeakyRelu", "Tanh", "HardSwish", "Elu", "Gelu", ""})


def _gelu(step: Step) -> None:
    """Gelu, QuickGelu, and BiasGelu, FastGelu with their bias: gelu(x + bias)."""
    slots = [slot for slot in (0, 1) if step.has(slot)]
    operands, axis_labels = step.join_inputs(slots)
    step.emit(axis_labels, zero=all(operand.blanks(axis_labels) for operand in operands))


def _skip_norm(step: Step) -> None:
    """SkipLayerNormalization: x, skip, gamma, [beta], [bias]; output 3 is x + skip + bias."""
    simplified = step.node.op_type == "SkipSimplifiedLayerNormalization"
    bias = 3 if simplified else 4
    rank = len(step.shape())
    summed = [slot for slot in (0, 1, bias) if step.has(slot)]
    operands, axis_labels = step.join_inputs(summed)
    zero = all(operand.blanks(axis_labels) for operand in operands)
    whole = step.emit(axis_labels, zero=zero)
    if not step.cut_statistics(whole, rank - 1, widened=True):
        step.fix(whole, [rank - 1], _STATISTICS)
    whole.zero = False
    if step.has_output(3):
        step.emit(axis_labels, 3, zero=zero)
    for slot in (2,) if simplified else (2, 3):
        if step.has(slot):
            parts = [Operand(whole, tuple(range(rank))), Operand(step.read(slot), (rank - 1,))]
            whole.axis_labels = join(step.relations, parts)


def _fused_matmul(step: Step) -> None:
    if step.attribute("transBatchA", 0) or step.attribute("transBatchB", 0):
        raise Refusal("FusedMatMul with transposed batch axes")
    first, second = step.read(0), step.read(1)
    left, right, kept = matmul_axes(len(first.shape), len(second.shape))
    if step.attribute("transA", 0) and len(left) > 1:
        left = (*left[:-2], left[-1], left[-2])
    if step.attribute("transB", 0) and len(right) > 1:
        right = (*right[:-2], right[-1], right[-2])
    contract_operands(step, [Operand(first, left), Operand(second, right)], kept)


def _fused_gemm(step: Step) -> None:
    """FusedGemm: activation(alpha a b + beta c)."""
    gemm(step)
    _activate(step)


def _fused_conv(step: Step) -> None:
    """FusedConv: activation(conv(x, w, b) + z)."""
    output = convolve(step)
    if step.has(3):
        step.add_bias(output, 3, tuple(range(len(output.shape))))
    _activate(step)


def _activate(step: Step) -> None:
    output = step.emitted()
    output.zero = output.zero and str(step.attribute("activation", "")) in _ZERO_TO_ZERO


RULES: RuleTable = {
    **{("com.microsoft", op): _gelu for op in ("Gelu", "QuickGelu", "BiasGelu", "FastGelu")},
    ("com.microsoft", "SkipLayerNormalization"): _skip_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "FusedGemm"): _fused_gemm,
    ("com.microsoft", "FusedConv"): _fused_conv,
}
