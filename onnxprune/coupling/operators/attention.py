"""Fused attention ops, spelled out on the labels: split heads, scores, softmax, values, merge.

Removable are whole heads (with grouped queries: a key/value head and all its query heads), query
and key dims together, and value dims. The softmax scale stays that of the original head size.
A rotary embedding turns dims in pairs, the same pairs in every head: pairs can go, with their
columns of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.coupling.labels import (
    AxisLabels,
    Operand,
    TensorLabels,
    broadcast_axes,
    collapse,
    contract,
    join,
    rename,
    reshape,
    simplify,
    take,
)
from onnxprune.coupling.step import Refusal, RuleTable, Step

_SOFTMAX = "Softmax takes statistics over it"
_NOT_ZERO = "a product of two activations, neither of them zero where it is removed"

# Axes of the common space: batch, head, query position, key position, query dim, value dim.
_BATCH, _HEAD, _QUERY, _KEY, _DIM, _VALUE = range(6)


def _attention(step: Step) -> None:
    """Attention of opset 23: 3-D inputs carry their head counts as attributes, 4-D ones do not."""
    if any(step.has(slot) for slot in (4, 5)) or len(step.outputs()) > 1:
        raise Refusal("Attention with a key/value cache")
    heads = [step.attribute(f"{kind}_num_heads") for kind in ("q", "kv", "kv")]
    query, key, value = (_split_heads(step, slot, heads[slot]) for slot in range(3))
    _note_readers(step, (0, 1), len(step.shape(0)) - 1)
    result = _attend(step, query, key, value, mask=3)
    if len(step.output_shape()) == 4:
        step.emit(result.axis_labels, zero=result.zero)
    else:
        _emit_merged(step, result)


def _multi_head(step: Step) -> None:
    """com.microsoft MultiHeadAttention on separate query, key and value [b, s, H*D]."""
    if any(step.has(slot) for slot in range(6, len(step.node.inputs))) or len(step.outputs()) > 1:
        raise Refusal("MultiHeadAttention with a key/value cache")
    if not (step.has(1) and step.has(2)) or any(len(step.shape(s)) != 3 for s in range(3)):
        raise Refusal("MultiHeadAttention with packed inputs")
    count = int(step.attribute("num_heads"))
    biases = _packed_bias(step, 3) if step.has(3) else (None, None, None)
    query, key, value = (_split_heads(step, slot, count, bias) for slot, bias in enumerate(biases))
    _note_readers(step, (0, 1), 2)
    _emit_merged(step, _attend(step, query, key, value, mask=5))


def _packed_bias(step: Step, slot: int) -> list[TensorLabels]:
    """The parts of a bias [query | key | value]."""
    bias = step.read(slot)
    axis_labels = bias.materialise(step.relations)
    ends = np.cumsum([step.shape(part)[-1] for part in range(3)]).tolist()
    return [
        TensorLabels(
            bias.name,
            (end - start,),
            take(step.relations, axis_labels, 0, np.arange(start, end)),
            zero=bias.zero,
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _packed(step: Step) -> None:
    """com.microsoft Attention: one weight [I, Q+K+V], three equal widths or `qkv_hidden_sizes`."""
    if step.has(4) or len(step.outputs()) > 1:
        raise Refusal("fused Attention with a key/value cache")
    if step.attribute("do_rotary", 0):
        raise Refusal("fused Attention with a rotary embedding")
    data, weight = step.read(0), step.read(1)
    sizes = step.attribute("qkv_hidden_sizes")
    widths = [int(n) for n in sizes] if sizes else [weight.shape[1] // 3] * 3
    heads = int(step.attribute("num_heads"))
    operands = [Operand(data, (0, 1, 2)), Operand(weight, (2, 3))]
    packed = TensorLabels("", (*data.shape[:2], sum(widths)), zero=True)
    packed.axis_labels = rename(
        contract(step.relations, operands, (0, 1, 3), _NOT_ZERO), {0: 0, 1: 1, 3: 2}
    )
    if any(2 in label.axes for label in data.axis_labels) and weight.constant:
        step.note_consumer(data, 2, weight.name, 0)
    if step.has(2):
        step.add_bias(packed, 2, (2,))
    query, key, value = _unpacked(step, packed, widths, [heads] * 3)
    if not sizes:  # one width in the attributes: all three lose the same dims of a head
        join(step.relations, [Operand(query, (0, 1, 4, 3)), Operand(value, (0, 1, 5, 3))])
    _emit_merged(step, _attend(step, query, key, value, mask=5))


def _group_query(step: Step) -> None:
    """com.microsoft GroupQueryAttention: a key/value head goes whole, with the queries it serves.

    Its kernels want heads of certain sizes, so the dims of a head stay.
    """
    name = step.node.op_type
    if any(step.has(slot) for slot in range(12, len(step.node.inputs))) or step.has_output(3):
        raise Refusal(f"{name} with a quantised cache or with its scores as an output")
    past = [step.node.inputs[slot] for slot in (3, 4) if step.has(slot)]
    present = [step.node.outputs[slot] for slot in step.outputs() if slot]
    given = (value for value in past if value is not None and not value.is_initializer())
    if any(value.is_graph_input() for value in given) or any(
        value.is_graph_output() for value in present
    ):
        raise Refusal(f"the key/value cache of {name} is an input or output of the model")
    heads, served = int(step.attribute("num_heads")), int(step.attribute("kv_num_heads"))
    counts = (heads, served, served)
    if step.has(1) and step.has(2):
        parts = [_split_heads(step, slot, counts[slot]) for slot in range(3)]
        _note_readers(step, (0, 1), 2)
    else:
        packed = step.read(0)
        packed.materialise(step.relations)
        dim = packed.shape[2] // sum(counts)
        parts = _unpacked(step, packed, [dim * count for count in counts], counts)
        _note_readers(step, (0,), 2)
    for part in parts:
        part.axis_labels = collapse(
            step.relations, part.axis_labels, 3, f"{name} keeps the size of a head"
        )
    query, key, value = parts
    result = _attend(step, query, key, value, mask=10)
    if step.has(11):
        sink = Operand(step.read(11), (1,))
        join(step.relations, [Operand.of(result), sink])
    for slot, part in ((1, key), (2, value)):
        zero = part.zero
        if step.has(slot + 2):
            cached = step.read(slot + 2)
            step.fix(cached, [2], "the cache grows along it")
            axes = (0, 1, None, 3)
            join(step.relations, [Operand(part, axes), Operand(cached, axes)])
            zero = zero and cached.zero
        if step.has_output(slot):
            step.emit(part.axis_labels, slot, zero=zero)
    _emit_merged(step, result)


def _unpacked(
    step: Step, packed: TensorLabels, widths: Sequence[int], heads: Sequence[int]
) -> list[TensorLabels]:
    """Query, key and value out of [b, s, Q+K+V], each as [batch, heads, length, dim]."""
    ends = np.cumsum(widths).tolist()
    parts = []
    for start, end, count in zip([0, *ends], ends, heads, strict=False):
        axis_labels = take(step.relations, packed.axis_labels, 2, np.arange(start, end))
        shape = (*packed.shape[:2], end - start)
        part = packed.moved(shape, axis_labels)
        parts.append(_apart(step, part, count))
    return parts


def _emit_merged(step: Step, result: TensorLabels) -> None:
    """Emit [batch, heads, length, dim] as [batch, length, heads * dim]."""
    batch, heads, length, dim = result.shape
    moved = rename(result.axis_labels, {0: 0, 1: 2, 2: 1, 3: 3})
    before = (batch, length, heads, dim)
    merged = reshape(step.relations, moved, before, (batch, length, heads * dim))
    step.emit(merged, zero=result.zero)


def _split_heads(
    step: Step, slot: int, heads: int | None, bias: TensorLabels | None = None
) -> TensorLabels:
    """Labels of an input, plus bias, as [batch, heads, length, dim]."""
    labels = step.read(slot)
    axis_labels = labels.materialise(step.relations)
    if bias is not None:
        parts = [Operand(labels, (0, 1, 2)), Operand(bias, (2,))]
        axis_labels = join(step.relations, parts)
        zero = all(part.blanks(axis_labels) for part in parts)
        labels = TensorLabels(labels.name, labels.shape, axis_labels, zero=zero)
    if len(labels.shape) == 4:
        return labels.moved(labels.shape, axis_labels)
    if not heads:
        raise Refusal("Attention on 3-D inputs without head counts")
    return _apart(step, labels, heads)


def _apart(step: Step, labels: TensorLabels, heads: int) -> TensorLabels:
    """Labels of [batch, length, heads * dim] as [batch, heads, length, dim]."""
    batch, length, width = labels.shape
    split = (batch, length, heads, width // heads)
    axis_labels = reshape(step.relations, labels.axis_labels, labels.shape, split)
    shape = (batch, heads, length, width // heads)
    moved = rename(axis_labels, {0: 0, 1: 2, 2: 1, 3: 3})
    return labels.moved(shape, moved)


def _note_readers(step: Step, slots: tuple[int, ...], axis: int) -> None:
    """Query and key dims are summed in the scores: that is where their removal is felt."""
    for slot in slots:
        labels = step.peek(slot)
        if any(axis in label.axes for label in labels.axis_labels):
            step.note_consumer(labels, axis)


def _attend(
    step: Step, query: TensorLabels, key: TensorLabels, value: TensorLabels, mask: int
) -> TensorLabels:
    """Labels [batch, heads, length, dim] of softmax(query key^T + mask) value."""
    relations = step.relations
    repeats = query.shape[1] // key.shape[1]
    key, value = (_repeat_heads(step, labels, repeats) for labels in (key, value))
    operands = [
        Operand(query, (_BATCH, _HEAD, _QUERY, _DIM)),
        Operand(key, (_BATCH, _HEAD, _KEY, _DIM)),
    ]
    kept = (_BATCH, _HEAD, _QUERY, _KEY)
    axis_labels = contract(relations, operands, kept, _NOT_ZERO)
    shape = (*query.shape[:3], key.shape[2])
    scores = TensorLabels("", shape, rename(axis_labels, {axis: i for i, axis in enumerate(kept)}))
    if step.has(mask):
        added = step.read(mask)
        operands = [Operand.of(scores), Operand(added, broadcast_axes(len(added.shape), 4))]
        scores.axis_labels = join(relations, operands)
    scores.axis_labels = collapse(relations, scores.axis_labels, 3, _SOFTMAX)
    operands = [
        Operand(scores, (_BATCH, _HEAD, _QUERY, _KEY)),
        Operand(value, (_BATCH, _HEAD, _KEY, _VALUE)),
    ]
    kept = (_BATCH, _HEAD, _QUERY, _VALUE)
    axis_labels = contract(relations, operands, kept, _NOT_ZERO)
    zero = operands[1].blanks(axis_labels)
    result = simplify(relations, rename(axis_labels, {axis: i for i, axis in enumerate(kept)}))
    return TensorLabels("", (*query.shape[:3], value.shape[3]), result, zero=zero)


def _repeat_heads(step: Step, labels: TensorLabels, repeats: int) -> TensorLabels:
    """Each key/value head serves `repeats` query heads in a row; a single one just broadcasts."""
    if repeats == 1 or labels.shape[1] == 1:
        return labels
    index = np.repeat(np.arange(labels.shape[1]), repeats)
    axis_labels: AxisLabels = take(step.relations, labels.axis_labels, 1, index)
    shape = (labels.shape[0], len(index), *labels.shape[2:])
    return labels.moved(shape, axis_labels)


def _rotary(step: Step) -> None:
    """RotaryEmbedding: x cos - y sin and x sin + y cos for dims x and y of a pair."""
    tables = (2, 3) if step.node.domain else (1, 2)
    width = 2 * step.shape(tables[0])[-1]
    heads = int(step.attribute("num_heads", 0)) or step.shape(0)[-1] // width
    labels = _split_heads(step, 0, heads)
    if step.attribute("interleaved", 0):
        halves = np.arange(width).reshape(-1, 2).T
    else:
        halves = np.arange(width).reshape(2, -1)
    operands = []
    for half in halves:
        axis_labels = take(step.relations, labels.axis_labels, 3, half)
        part = TensorLabels("", (*labels.shape[:3], width // 2), axis_labels)
        operands.append(Operand.of(part))
    for slot in tables:
        table = step.read(slot)
        if len(table.shape) == 2:
            step.fix(table, [0], "rows are looked up by position")
        axes = (None, 3) if len(table.shape) == 2 else (0, 2, 3)
        operands.append(Operand(table, axes))
    join(step.relations, operands)
    data = step.peek(0)
    step.emit(data.axis_labels, zero=data.zero)


RULES: RuleTable = {
    ("", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "Attention"): _packed,
    ("com.microsoft", "GroupQueryAttention"): _group_query,
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
