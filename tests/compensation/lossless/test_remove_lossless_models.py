"""Units added to real models, and copied in random ones: found, and proved right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from helpers.lossless import merged, without
from helpers.networks import BLOCKS, HEADS, Map, Net
from helpers.oracle import traced
from helpers.paths import MODELS
from hypothesis import assume, event, given, note, settings
from hypothesis import strategies as st
from onnx import numpy_helper


def read(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


def widened(
    proto: onnx.ModelProto,
    made: Sequence[tuple[str, int]],
    used: Sequence[tuple[str, int]],
    scaled: Sequence[str] = (),
    also: Sequence[tuple[str, int]] = (),
) -> onnx.ModelProto:
    """Add four units to a layer by editing its tensors: one equal to unit 0, two proportional to
    unit 1, one zero, one constant; their readers get new random weights.

    Args:
        proto: left as it is.
        made: tensors that make the units, and the axis; the last one is additive (a bias).
        used: tensors that read them, and the axis.
        scaled: which of `made` a factor goes into.
        also: further tensors with an entry for each unit, which are only copied.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    tensors = {one.name: one for one in result.graph.initializer}
    rng = np.random.default_rng(0)
    for name, axis in (*made, *used, *also):
        array = numpy_helper.to_array(tensors[name])
        new = array.take([0, 1, 1, 2, 2], axis=axis)
        if (name, axis) in used:
            new = rng.standard_normal(new.shape).astype(new.dtype) * np.abs(array).mean()
        elif name in scaled:
            factors = [1, 2, 0.3, 0, 0]
            new = new * np.array(factors).reshape([-1 if i == axis else 1 for i in range(new.ndim)])
            if (name, axis) == made[-1]:
                np.moveaxis(new, axis, 0)[4] = 0.6
        whole = np.concatenate([array, new.astype(array.dtype)], axis=axis)
        tensors[name].CopyFrom(numpy_helper.from_array(whole, name))
    del result.graph.value_info[:]
    return result


WIDENED = {
    "digits_mlp": ([("coefficient", 1), ("intercepts", 1)], [("coefficient1", 0)], ()),
    "digits_resnet": ([("onnx::Conv_103", 0), ("onnx::Conv_104", 0)], [("onnx::Conv_106", 1)], ()),
    "digits_resnet_bn": (
        [("blocks.1.bn1.weight", 0), ("blocks.1.bn1.bias", 0)],
        [("blocks.1.conv2.weight", 1)],
        [("blocks.1.conv1.weight", 0)]
        + [(f"blocks.1.bn1.running_{one}", 0) for one in ("mean", "var")],
    ),
}


@pytest.mark.parametrize("name", WIDENED)
def test_units_added_to_a_real_model_are_found_and_nothing_else(name: str) -> None:
    proto = read(name)
    made, used, also = WIDENED[name]
    wide = widened(proto, made, used, [one for one, _ in made], also)
    found, result = without(wide)
    (one,) = found.values()
    shapes = {t.name: list(t.dims) for t in proto.graph.initializer}
    size = shapes[made[0][0]][made[0][1]]
    assert merged(found) == {frozenset({0, size}), frozenset({1, size + 1, size + 2})}
    assert (one.dead, one.constant) == ([size + 3], [size + 4])
    assert len(one.merged) == 3
    got = {t.name: list(t.dims) for t in result.graph.initializer}
    assert {key: got[key] for key in shapes} == shapes


def test_neurons_added_to_the_transformer_are_found() -> None:
    """Behind Gelu: equal ones merge, proportional ones do not, those without weights are dead."""
    proto = read("digits_transformer")
    weights = [one.input[1] for one in proto.graph.node if one.op_type == "MatMul"]
    shapes = {one.name: tuple(one.dims) for one in proto.graph.initializer}
    first = next(one for one in weights if shapes.get(one) == (32, 64))
    second = next(one for one in weights if shapes.get(one) == (64, 32))
    made = [(first, 1), ("layers.0.mlp.0.bias", 0)]
    wide = widened(proto, made, [(second, 0)], [one for one, _ in made])
    found, _ = without(wide)
    assert merged(found) == {frozenset({0, 64})}
    assert [(one.dead, one.constant) for one in found.values()] == [([67], [68])]


@pytest.mark.parametrize("name", [*WIDENED, "digits_transformer"])
def test_nothing_found_nothing_changed(name: str) -> None:
    assert without(read(name))[0] == {}


def test_what_weight_decay_has_switched_off_goes() -> None:
    """Weights of 1e-16 say nothing; the biases of such units may still do."""
    proto = read("spirals_mlp")
    found, result = without(proto)
    given_ = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    for name, reader in (("0.weight", "2.weight"), ("2.weight", "4.weight")):
        made = np.linalg.norm(given_[name], axis=1)
        read_by = np.linalg.norm(given_[reader], axis=0)
        off = np.flatnonzero((made < 1e-15 * made.max()) | (read_by < 1e-15 * read_by.max()))
        assert len(off)
        one = found[f"{name}[0]"]
        assert sorted([*one.dead, *one.constant]) == off.tolist()
        assert not one.merged
    assert sum(len(one.units) for one in found.values()) == 13
    assert {t.name: t.dims[0] for t in result.graph.initializer}["2.weight"] == 50 - 11


@settings(max_examples=60)
@given(data=st.data())
def test_copied_units_of_random_networks_never_prove_too_much(data: st.DataObject) -> None:
    """What makes one unit is copied to another, in a random group; readers stay as they are."""
    seed = data.draw(st.integers(0, 2**16), "seed")
    net = Net(lambda options: data.draw(st.sampled_from(options)), seed)
    source = Map("input", (3, 6, 5))
    names = sorted(set(BLOCKS) - {"sub_pixels"})
    x = BLOCKS["conv"](net, source)
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4), "blocks"):
        x = BLOCKS[name](net, x)
    result = data.draw(st.sampled_from(HEADS), "head")(net, BLOCKS["conv"](net, x))
    proto = net.model(source, result)
    subject = traced(proto)
    note(onnx.printer.to_text(proto))
    free = [one for one in subject.groups if one.size > 2]
    assume(free)
    group = data.draw(st.sampled_from(free), "group")
    kept, copy = data.draw(st.permutations(range(group.size)), "units")[:2]
    factor = data.draw(st.sampled_from((1.0, 2.0, 0.0)), "factor")
    read_by = {(one.consumer.weight, one.consumer.weight_axis) for one in group.readings}
    arrays = {one.name: one for one in proto.graph.initializer}
    arrays |= {n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"}
    for owned in group.owned:
        places, goals = (np.argwhere(owned.units == one) for one in (kept, copy))
        if any((owned.tensor, axis) in read_by for axis in owned.axes) or len(places) != len(goals):
            continue
        array = numpy_helper.to_array(arrays[owned.tensor]).copy()
        moved = np.moveaxis(array, owned.axes, range(len(owned.axes)))
        weight = moved.ndim > len(owned.axes)
        moved[tuple(goals.T)] = moved[tuple(places.T)] * np.float32(factor if weight else 1)
        arrays[owned.tensor].CopyFrom(numpy_helper.from_array(array, arrays[owned.tensor].name))
    found, _ = without(proto)
    event(f"found {bool(found)}")
