"""Which tables have a row for which operator: one list to read, checked against the tables.

A coupling rule is all an operator needs to be pruned through; the other tables serve operators that
need more (CONTRIBUTING.md, "Where to add what"). After a change, print the list anew with

    PYTHONPATH=tests python tests/test_operators.py
"""

from __future__ import annotations

from onnxprune.compensation.lossless.value_numbers import NUMBERING
from onnxprune.cost.latency.kernels import _FAMILIES
from onnxprune.cost.macs import _COUNTERS
from onnxprune.coupling.operators import RULES
from onnxprune.gradients.decompositions import BODIES
from onnxprune.gradients.operators import RULES as GRADIENTS
from onnxprune.surgery.operators import SIZE_RULES

Key = tuple[str, str]

TABLES: dict[str, set[Key]] = {
    "sizes": set(SIZE_RULES),
    "MACs": set(_COUNTERS),
    "latency": set(_FAMILIES),
    "values": {("", op_type) for op_type in NUMBERING},
    "gradient": set(GRADIENTS) | set(BODIES),
}
"""Column of the inventory -> operators of the table.

sizes     surgery/operators: attributes and integer inputs that follow a cut
MACs      cost/macs.py: multiplications counted
latency   cost/latency/kernels.py: time modelled from measured kernels
values    compensation/lossless/value_numbers.py: equal and constant units recognised
gradient  gradients/operators or gradients/decompositions: differentiated for taylor and fisher
"""

NOT_COUPLED = {
    "MACs": {
        # counted so that a model that has them is measured; their axes are refused
        ("", "DeformConv"),
        ("com.microsoft", "ConvTransposeWithDynamicPads"),
        ("com.microsoft", "DynamicQuantizeLSTM"),
        ("com.microsoft", "DynamicQuantizeMatMul"),
        ("com.microsoft", "FusedMatMulActivation"),
        ("com.microsoft", "GemmFastGelu"),
        ("com.microsoft", "MatMulBnb4"),
        ("com.microsoft", "MatMulFpQ4"),
        ("com.microsoft", "MatMulInteger16"),
        ("com.microsoft", "MatMulIntegerToFloat"),
        ("com.microsoft", "NhwcFusedConv"),
        ("com.microsoft", "QAttention"),
        ("com.microsoft", "QLinearConv"),
        ("com.microsoft", "QLinearMatMul"),
        ("com.microsoft", "TransposeMatMul"),
    },
    "gradient": {
        # gradients flow through them to other axes; their own axes are refused
        ("", "Trilu"),
        # it reads integers and weights
        ("com.microsoft", "EmbedLayerNormalization"),
        ("com.microsoft", "TransposeMatMul"),
    },
}
"""Rows of a table without a coupling rule, with the reason."""

INVENTORY = """
operator                                         sizes     MACs      latency   values    gradient

[attention]
Attention                                        x         x         .         .         .
RotaryEmbedding                                  x         .         .         .         .
com.microsoft::Attention                         x         x         .         .         x
com.microsoft::GroupQueryAttention               x         x         .         .         x
com.microsoft::MultiHeadAttention                x         x         .         .         x
com.microsoft::RotaryEmbedding                   x         .         .         .         x

[contraction]
Einsum                                           .         x         .         x         x
Gemm                                             .         x         x         x         x
MatMul                                           .         x         x         x         x

[convolution]
Conv                                             x         x         x         x         x
ConvTranspose                                    x         x         x         x         x

[elementwise]
Abs                                              .         .         .         x         x
Acos                                             .         .         .         x         .
Acosh                                            .         .         .         x         .
Add                                              .         .         .         x         x
And                                              .         .         .         .         .
Asin                                             .         .         .         x         .
Asinh                                            .         .         .         x         .
Atan                                             .         .         .         x         .
Atanh                                            .         .         .         x         .
BitShift                                         .         .         .         .         .
BitwiseAnd                                       .         .         .         .         .
BitwiseNot                                       .         .         .         .         .
BitwiseOr                                        .         .         .         .         .
BitwiseXor                                       .         .         .         .         .
Cast                                             .         .         .         x         x
CastLike                                         .         .         .         .         x
Ceil                                             .         .         .         x         x
Celu                                             .         .         .         x         .
Clip                                             .         .         .         x         x
Cos                                              .         .         .         x         x
Cosh                                             .         .         .         x         .
Div                                              .         .         .         x         x
Dropout                                          .         .         .         x         x
Elu                                              .         .         .         x         x
Equal                                            .         .         .         .         .
Erf                                              .         .         .         x         x
Exp                                              .         .         .         x         x
Floor                                            .         .         .         x         x
Gelu                                             .         .         .         x         x
Greater                                          .         .         .         .         .
GreaterOrEqual                                   .         .         .         .         .
HardSigmoid                                      .         .         .         x         x
HardSwish                                        .         .         .         x         x
Identity                                         .         .         .         x         x
IsInf                                            .         .         .         .         .
IsNaN                                            .         .         .         .         .
LeakyRelu                                        .         .         .         x         x
Less                                             .         .         .         .         .
LessOrEqual                                      .         .         .         .         .
Log                                              .         .         .         x         x
Max                                              .         .         .         x         x
Mean                                             .         .         .         .         x
Min                                              .         .         .         x         x
Mish                                             .         .         .         x         x
Mod                                              .         .         .         .         .
Mul                                              .         .         .         x         x
Neg                                              .         .         .         x         x
Not                                              .         .         .         .         .
Or                                               .         .         .         .         .
PRelu                                            .         .         .         x         x
Pow                                              .         .         .         x         x
Reciprocal                                       .         .         .         x         x
Relu                                             .         .         .         x         x
Round                                            .         .         .         x         x
Selu                                             .         .         .         x         x
Shrink                                           .         .         .         x         .
Sigmoid                                          .         .         .         x         x
Sign                                             .         .         .         x         x
Sin                                              .         .         .         x         x
Sinh                                             .         .         .         x         .
Softplus                                         .         .         .         x         x
Softsign                                         .         .         .         x         x
Sqrt                                             .         .         .         x         x
Sub                                              .         .         .         x         x
Sum                                              .         .         .         x         x
Swish                                            .         .         .         x         x
Tan                                              .         .         .         x         .
Tanh                                             .         .         .         x         x
ThresholdedRelu                                  .         .         .         x         .
Where                                            .         .         .         x         x
Xor                                              .         .         .         .         .

[fused]
com.microsoft::BiasGelu                          .         .         .         .         x
com.microsoft::FastGelu                          .         .         .         .         x
com.microsoft::FusedConv                         x         x         .         .         x
com.microsoft::FusedGemm                         .         x         .         .         x
com.microsoft::FusedMatMul                       .         x         .         .         x
com.microsoft::Gelu                              .         .         .         .         x
com.microsoft::QuickGelu                         .         .         .         .         x
com.microsoft::SkipLayerNormalization            .         .         .         .         x
com.microsoft::SkipSimplifiedLayerNormalization  .         .         .         .         x

[indexing]
GatherElements                                   .         .         .         .         x
Scatter                                          .         .         .         .         .
ScatterElements                                  .         .         .         .         x
ScatterND                                        .         .         .         .         x

[movement]
Concat                                           .         .         .         x         x
ConstantOfShape                                  x         .         .         .         .
DepthToSpace                                     .         .         .         x         x
Expand                                           x         .         .         x         x
Flatten                                          .         .         .         x         x
Gather                                           x         .         .         x         x
GatherND                                         x         .         .         .         x
GridSample                                       .         .         .         .         .
Pad                                              x         .         .         x         x
Reshape                                          x         .         .         x         x
Resize                                           x         .         .         .         x
ReverseSequence                                  .         .         .         .         x
Shape                                            .         .         .         .         .
Size                                             .         .         .         .         .
Slice                                            x         .         .         x         x
SpaceToDepth                                     .         .         .         x         x
Split                                            x         .         .         x         x
Squeeze                                          .         .         .         x         x
Tile                                             x         .         .         x         x
Transpose                                        .         .         .         x         x
Unsqueeze                                        .         .         .         x         x
Upsample                                         .         .         .         .         .
com.microsoft::GridSample                        .         .         .         .         .

[normalisation]
BatchNormalization                               .         .         .         x         x
CumSum                                           .         .         .         .         x
GroupNormalization                               x         .         .         .         x
Hardmax                                          .         .         .         .         .
InstanceNormalization                            .         .         .         x         x
LRN                                              .         .         .         .         x
LayerNormalization                               .         .         .         .         x
LogSoftmax                                       .         .         .         x         x
LpNormalization                                  .         .         .         .         x
RMSNormalization                                 .         .         .         .         x
SimplifiedLayerNormalization                     .         .         .         .         x
Softmax                                          .         .         .         x         x

[quantisation]
ConvInteger                                      x         x         x         .         x
DequantizeLinear                                 .         .         .         .         x
DynamicQuantizeLinear                            .         .         .         .         x
MatMulInteger                                    .         x         x         .         x
QLinearConv                                      x         x         x         .         x
QLinearMatMul                                    .         x         x         .         x
QuantizeLinear                                   .         .         .         .         x
com.microsoft::DequantizeLinear                  .         .         .         .         x
com.microsoft::MatMulNBits                       x         x         .         .         .
com.microsoft::QGemm                             .         x         .         .         x
com.microsoft::QLinearAdd                        .         .         .         .         x
com.microsoft::QLinearAveragePool                .         .         .         .         x
com.microsoft::QLinearConcat                     .         .         .         .         .
com.microsoft::QLinearGlobalAveragePool          .         .         .         .         x
com.microsoft::QLinearLeakyRelu                  .         .         .         .         x
com.microsoft::QLinearMul                        .         .         .         .         x
com.microsoft::QLinearSigmoid                    .         .         .         .         x
com.microsoft::QuantizeLinear                    .         .         .         .         x

[recurrent]
GRU                                              x         x         x         .         x
LSTM                                             x         x         x         .         x
RNN                                              x         x         x         .         x

[reduction]
ArgMax                                           .         .         .         .         .
ArgMin                                           .         .         .         .         .
AveragePool                                      .         .         .         x         x
GlobalAveragePool                                .         .         .         x         x
GlobalLpPool                                     .         .         .         x         .
GlobalMaxPool                                    .         .         .         x         x
LpPool                                           .         .         .         x         .
MaxPool                                          .         .         .         x         x
ReduceL1                                         .         .         .         x         .
ReduceL2                                         .         .         .         x         x
ReduceLogSum                                     .         .         .         .         .
ReduceLogSumExp                                  .         .         .         .         .
ReduceMax                                        .         .         .         x         x
ReduceMean                                       .         .         .         x         x
ReduceMin                                        .         .         .         x         x
ReduceProd                                       .         .         .         .         .
ReduceSum                                        .         .         .         x         x
ReduceSumSquare                                  .         .         .         .         .
TopK                                             .         .         .         .         x

[subgraphs]
If                                               .         x         .         .         .
Loop                                             x         x         .         .         .
Scan                                             .         x         .         .         .
"""


def inventory() -> str:
    """The list as the tables have it: by family of the coupling rule, then by name."""
    width = max(len(_name(key)) for key in RULES) + 2
    columns = "".join(f"{name:<10}" for name in TABLES)
    lines = [f"{'operator':<{width}}{columns}"]
    families: dict[str, list[Key]] = {}
    for key, rule in RULES.items():
        families.setdefault(rule.__module__.rpartition(".")[2], []).append(key)
    for family, keys in sorted(families.items()):
        lines += ["", f"[{family}]"]
        for key in sorted(keys, key=lambda key: (key[0], key[1])):
            marks = "".join(f"{'x' if key in table else '.':<10}" for table in TABLES.values())
            lines.append(f"{_name(key):<{width}}{marks}")
    return "\n".join(line.rstrip() for line in lines)


def _name(key: Key) -> str:
    return "::".join(part for part in key if part)


def test_the_inventory_is_what_the_tables_have() -> None:
    assert inventory() == INVENTORY.strip("\n")


def test_what_is_in_a_table_has_a_coupling_rule_or_a_reason() -> None:
    without = {name: table - RULES.keys() for name, table in TABLES.items()}
    assert {name: keys for name, keys in without.items() if keys} == NOT_COUPLED


def test_a_size_rule_stands_in_the_file_of_the_family_of_its_coupling_rule() -> None:
    # onnxruntime's fused and quantised forms follow the operator they are made of
    derived = {"fused": "convolution", "quantisation": "convolution"}
    for key, rule in SIZE_RULES.items():
        family = RULES[key].__module__.rpartition(".")[2]
        file = rule.__module__.rpartition(".")[2]
        assert file in (family, derived.get(family)), _name(key)


if __name__ == "__main__":
    print(inventory())
