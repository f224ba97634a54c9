"""Ways to damage an ONNX model.

A mutation changes a ModelProto in place; it may do nothing where there is nothing to change. What
comes out may be broken, odd but valid, or no different.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper

Random = np.random.Generator
Mutation = Callable[[onnx.ModelProto, Random], None]

ODD_INTEGERS = (0, 1, -1, 2, 3, -2, 7, 1000, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63))
ODD_FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"))
ODD_NAMES = ("", "x", "weight_1", "onnxprune/shape/x", "a b", "ä/名", "../up", "n" * 5000)


def some_node(model: onnx.ModelProto, rng: Random) -> onnx.NodeProto:
    nodes = model.graph.node
    return nodes[int(rng.integers(len(nodes)))] if nodes else onnx.NodeProto()


def some_tensor(model: onnx.ModelProto, rng: Random) -> onnx.TensorProto:
    """An initializer, or the value of a Constant node."""
    tensors = list(model.graph.initializer)
    tensors += [a.t for n in model.graph.node for a in n.attribute if a.name == "value"]
    return tensors[int(rng.integers(len(tensors)))] if tensors else TensorProto()


def some_edge(model: onnx.ModelProto, rng: Random) -> str:
    """The name of any tensor of the graph."""
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return str(rng.choice(names)) if names else "x"


def some_interface(model: onnx.ModelProto, rng: Random) -> onnx.ValueInfoProto:
    values = [*model.graph.input, *model.graph.output]
    return values[int(rng.integers(len(values)))] if values else onnx.ValueInfoProto()


def delete_node(model: onnx.ModelProto, rng: Random) -> None:
    if model.graph.node:
        del model.graph.node[int(rng.integers(len(model.graph.node)))]


def delete_node_and_close_the_gap(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    if node.input and node.output:
        for other in model.graph.node:
            for slot, name in enumerate(other.input):
                if name == node.output[0]:
                    other.input[slot] = node.input[0]
        model.graph.node.remove(node)


def rename_edge(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    ends = node.input if rng.random() < 0.5 else node.output
    if ends:
        new = some_edge(model, rng) if rng.random() < 0.7 else str(rng.choice(ODD_NAMES))
        ends[int(rng.integers(len(ends)))] = new


def rename_everywhere(model: onnx.ModelProto, rng: Random) -> None:
    """A valid model whose tensor has an unusual name."""
    old, new = some_edge(model, rng), str(rng.choice(ODD_NAMES))
    for node in model.graph.node:
        for ends in (node.input, node.output):
            for slot, name in enumerate(ends):
                if name == old:
                    ends[slot] = new
    for field in (model.graph.initializer, model.graph.input, model.graph.output):
        for value in field:
            if value.name == old:
                value.name = new


def change_attribute(model: onnx.ModelProto, rng: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    node = nodes[int(rng.integers(len(nodes)))]
    attribute = node.attribute[int(rng.integers(len(node.attribute)))]
    kind = rng.random()
    if kind < 0.1:
        node.attribute.remove(attribute)
    elif kind < 0.2:
        attribute.type = int(rng.integers(0, 15))
    elif kind < 0.3:
        attribute.name = str(rng.choice(["axis", "perm", "group", "value", "pads", "alpha", ""]))
    elif attribute.type == AttributeProto.INT:
        attribute.i = int(rng.choice(ODD_INTEGERS))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(rng.choice(ODD_FLOATS))
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        if rng.random() < 0.3:
            attribute.ints.pop()
        else:
            slot = int(rng.integers(len(attribute.ints)))
            attribute.ints[slot] = int(rng.choice(ODD_INTEGERS))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = [b"", b"SAME_UPPER", b"VALID", b"CRD", b"\xff\xfe", b"bij,bjk->bik"][
            rng.integers(6)
        ]


def add_attribute(model: onnx.ModelProto, rng: Random) -> None:
    name = str(rng.choice(["axis", "group", "training_mode", "keepdims", "epsilon", "made_up"]))
    value = int(rng.choice(ODD_INTEGERS))
    some_node(model, rng).attribute.append(helper.make_attribute(name, value))


def swap_inputs(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    if len(node.input) > 1:
        one, two = rng.choice(len(node.input), 2, replace=False).tolist()
        node.input[one], node.input[two] = node.input[two], node.input[one]


def change_arity(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    ends = node.input if rng.random() < 0.6 else node.output
    if ends and rng.random() < 0.5:
        ends.pop()
    else:
        ends.append(str(rng.choice(["", "fresh", some_edge(model, rng)])))


def clear_input(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = ""


def change_operator(model: onnx.ModelProto, rng: Random) -> None:
    node = some_node(model, rng)
    if rng.random() < 0.2:
        node.domain = str(rng.choice(["com.microsoft", "ai.onnx", "ai.onnx.ml", "nowhere"]))
    else:
        kinds = [one.op_type for one in model.graph.node]
        more = ["Identity", "Softmax", "Transpose", "MatMul", "Einsum", "Loop", "SequenceConstruct"]
        more += ["Shape", "NonZero", "Unique", "Dropout", "RandomNormalLike", "Nonsense", "Split"]
        node.op_type = str(rng.choice(kinds + more))


def change_dims(model: onnx.ModelProto, rng: Random) -> None:
    tensor = some_tensor(model, rng)
    if tensor.dims:
        slot = int(rng.integers(len(tensor.dims)))
        tensor.dims[slot] = int(rng.choice([*ODD_INTEGERS, tensor.dims[slot] + 1]))


def change_shape(model: onnx.ModelProto, rng: Random) -> None:
    """Another shape with as many elements, or with other data for it."""
    tensor = some_tensor(model, rng)
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:
        return
    choices = [array.ravel(), array[None], array.T, array[..., None], array.squeeze()]
    if array.ndim:
        choices += [array[:1], array[..., :0]]
    other = np.ascontiguousarray(choices[rng.integers(len(choices))])
    tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))


def change_type(model: onnx.ModelProto, rng: Random) -> None:
    """Another data type, with or without converting the data."""
    tensor = some_tensor(model, rng)
    if rng.random() < 0.5:
        tensor.data_type = int(rng.integers(0, 26))
        return
    dtype = [np.float16, np.float64, np.int8, np.int64, np.bool_][rng.integers(5)]
    try:
        array = numpy_helper.to_array(tensor)
    except Exception:
        return
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))


def change_values(model: onnx.ModelProto, rng: Random) -> None:
    tensor = some_tensor(model, rng)
    try:
        array = np.array(numpy_helper.to_array(tensor))
    except Exception:
        return
    if not array.size or array.dtype.kind not in "fiu":
        return
    odd = ODD_FLOATS if array.dtype.kind == "f" else ODD_INTEGERS
    with np.errstate(all="ignore"):
        value = np.array(rng.choice(odd)).astype(array.dtype)
        if rng.random() < 0.5:
            array[...] = value
        else:
            array.flat[int(rng.integers(array.size))] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def duplicate_node(model: onnx.ModelProto, rng: Random) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(some_node(model, rng))
    if rng.random() < 0.5:
        copy.output[:] = [f"{name}/again" for name in copy.output]
    model.graph.node.append(copy)


def duplicate_initializer(model: onnx.ModelProto, rng: Random) -> None:
    if model.graph.initializer:
        tensors = model.graph.initializer
        tensors.append(tensors[int(rng.integers(len(tensors)))])


def drop_initializer(model: onnx.ModelProto, rng: Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def initializer_as_input(model: onnx.ModelProto, rng: Random) -> None:
    """As IR version 3 wants it, with the right or a wrong shape."""
    if model.graph.initializer:
        tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
        shape = [*tensor.dims, 1] if rng.random() < 0.3 else list(tensor.dims)
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
        )


def sparse_initializer(model: onnx.ModelProto, rng: Random) -> None:
    values = helper.make_tensor(some_edge(model, rng), TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def external_data(model: onnx.ModelProto, rng: Random) -> None:
    """Weights in a file: present or missing, long or short, inside or outside the folder."""
    if not model.graph.initializer:
        return
    tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
    tensor.data_location = TensorProto.EXTERNAL
    places = [
        "data.bin",
        "short.bin",
        "missing.bin",
        "../data.bin",
        "/etc/hostname",
        "",
        ".",
        "sub",
    ]
    entries = {"location": str(rng.choice(places))}
    if rng.random() < 0.6:
        entries["offset"] = str(rng.choice(["0", "4", "-1", "99999999999", "x", ""]))
    if rng.random() < 0.6:
        entries["length"] = str(rng.choice([str(len(tensor.raw_data)), "0", "-4", "1e3", "4"]))
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.8:
        tensor.ClearField("raw_data")


def make_cycle(model: onnx.ModelProto, rng: Random) -> None:
    if len(model.graph.node) > 1:
        first, second = sorted(rng.integers(len(model.graph.node), size=2).tolist())
        early, late = model.graph.node[first], model.graph.node[second]
        if early.input and late.output:
            early.input[int(rng.integers(len(early.input)))] = late.output[0]


def shuffle_nodes(model: onnx.ModelProto, rng: Random) -> None:
    nodes = [model.graph.node[i] for i in rng.permutation(len(model.graph.node))]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def change_interface(model: onnx.ModelProto, rng: Random) -> None:
    """Another type, rank or extent at an input or output."""
    value = some_interface(model, rng)
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3])
    odd = [
        TypeProto(),
        helper.make_tensor_type_proto(TensorProto.STRING, [2]),
        helper.make_tensor_type_proto(TensorProto.FLOAT16, [2, 3]),
        helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        helper.make_tensor_type_proto(int(rng.integers(0, 27)), ["N", 3, 6, 6]),
        helper.make_sequence_type_proto(tensor),
        helper.make_optional_type_proto(tensor),
        helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        helper.make_map_type_proto(TensorProto.INT64, tensor),
        helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2, 3]),
    ]
    dims = value.type.tensor_type.shape.dim
    if rng.random() < 0.5 and dims:
        dim = dims[int(rng.integers(len(dims)))]
        if rng.random() < 0.5:
            dim.dim_value = int(rng.choice([0, -1, 1, 2, 5, 2**40]))
        else:
            dim.dim_param = str(rng.choice(["", "N", "M", "a b"]))
    else:
        value.type.CopyFrom(odd[rng.integers(len(odd))])


def change_outputs(model: onnx.ModelProto, rng: Random) -> None:
    outputs = model.graph.output
    kind = rng.random()
    if kind < 0.2 and outputs:
        outputs.append(outputs[0])
    elif kind < 0.3 and outputs:
        del outputs[:]
    else:
        outputs.append(onnx.ValueInfoProto(name=some_edge(model, rng)))


def wrong_value_info(model: onnx.ModelProto, rng: Random) -> None:
    kind = int(rng.choice([TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING]))
    shape = [int(n) for n in rng.integers(0, 9, int(rng.integers(0, 5)))]
    info = helper.make_tensor_value_info(some_edge(model, rng), kind, shape)
    model.graph.value_info.append(info)


def change_versions(model: onnx.ModelProto, rng: Random) -> None:
    kind = rng.random()
    if kind < 0.3:
        model.ir_version = int(rng.choice([0, 1, 3, 4, 7, 10, 13, 14, 99, -1]))
    elif kind < 0.7 and model.opset_import:
        model.opset_import[0].version = int(rng.choice([*range(-1, 30), 2**40]))
    elif kind < 0.85:
        domain = str(rng.choice(["", "ai.onnx", "com.microsoft", "nowhere"]))
        model.opset_import.append(helper.make_opsetid(domain, int(rng.integers(0, 25))))
    else:
        del model.opset_import[:]


def wrap_in_function(model: onnx.ModelProto, rng: Random) -> None:
    """A node becomes a call of a local function that does the same; sometimes of itself."""
    node = some_node(model, rng)
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    if rng.random() < 0.15:
        inner.op_type, inner.domain = "wrapped", "local"
    inputs = list(dict.fromkeys(name for name in node.input if name))
    function = helper.make_function(
        "local", "wrapped", inputs, list(node.output), [inner], list(model.opset_import)
    )
    model.functions.append(function)
    call = helper.make_node("wrapped", inputs, list(node.output), domain="local")
    node.CopyFrom(call)
    if rng.random() < 0.9:
        model.opset_import.append(helper.make_opsetid("local", 1))


def wrap_in_if(model: onnx.ModelProto, rng: Random) -> None:
    """A node moves into both branches of an If; sometimes with a weight that only they read."""
    node = some_node(model, rng)
    if not node.output:
        return
    branches = []
    for name in ("then", "else"):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[:] = [f"{one}/{name}" for one in node.output]
        results = [onnx.ValueInfoProto(name=one) for one in inner.output]
        branches.append(helper.make_graph([inner], name, [], results))
    if rng.random() < 0.3:
        tensor = some_tensor(model, rng)
        branches[0].initializer.append(tensor)
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    call = helper.make_node(
        "If", ["condition"], list(node.output), then_branch=branches[0], else_branch=branches[1]
    )
    node.CopyFrom(call)


MUTATIONS: tuple[Mutation, ...] = (
    delete_node, delete_node_and_close_the_gap, rename_edge, rename_everywhere, change_attribute,
    add_attribute, swap_inputs, change_arity, clear_input, change_operator, change_dims,
    change_shape, change_type, change_values, duplicate_node, duplicate_initializer,
    drop_initializer, initializer_as_input, sparse_initializer, external_data, make_cycle,
    shuffle_nodes, change_interface, change_outputs, wrong_value_info, change_versions,
    wrap_in_function, wrap_in_if,
)  # fmt: skip
