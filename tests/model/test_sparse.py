"""Weights stored without their zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.oracle import ONE_THREAD, difference, outputs, parse
from onnx import numpy_helper

from onnxprune.errors import InputError
from onnxprune.model.execution import open_session, run
from onnxprune.model.load import load
from onnxprune.model.save import model_bytes, save
from onnxprune.model.tensors import mark_sparse, sparse_values
from onnxprune.verification.certificate import keep_loadable

NET = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 20] x) => (float[N, 30] y) { y = MatMul(x, w) }"""
FEED = {"x": np.random.default_rng(1).standard_normal((4, 20)).astype(np.float32)}


def network(left: float) -> onnx.ModelProto:
    """A weight of which some share is left."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((20, 30)).astype(np.float32)
    weight[rng.permutation(600).reshape(20, 30) >= left * 600] = 0
    return parse(NET, {"w": weight})


def stored(folder: Path, left: float) -> Path:
    model = load(network(left)).model
    mark_sparse(model.graph.initializers["w"])
    save(model, folder / "sparse.onnx")
    assert (folder / "sparse.onnx").stat().st_size == model_bytes(model)
    return folder / "sparse.onnx"


def test_a_mostly_empty_weight_takes_less_room_and_computes_the_same(tmp_path: Path) -> None:
    path, dense = stored(tmp_path, 0.2), network(0.2)
    proto = onnx.load(path)
    onnx.checker.check_model(proto)  # its shape inference knows no sparse weights
    assert [one.values.name for one in proto.graph.sparse_initializer] == ["w"]
    assert path.stat().st_size < 0.7 * dense.ByteSize()
    assert difference(outputs(dense, FEED), run(open_session(proto, ONE_THREAD), FEED)) == 0


def test_it_comes_back_as_it_was_and_stays_sparse(tmp_path: Path) -> None:
    path = stored(tmp_path, 0.2)
    model = load(path).model
    wanted = numpy_helper.to_array(network(0.2).graph.initializer[0])
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), wanted)
    save(model.clone(), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("left", [0.5, 0.34])
def test_a_weight_that_would_take_more_room_stays_dense(tmp_path: Path, left: float) -> None:
    assert not onnx.load(stored(tmp_path, left)).graph.sparse_initializer


def test_onnxruntime_loads_what_will_be_stored() -> None:
    model = load(network(0.2)).model
    mark_sparse(model.graph.initializers["w"])
    assert keep_loadable(model, ONE_THREAD)
    assert [value.name for value in sparse_values(model)] == ["w"]


def test_positions_by_axis_are_read_too() -> None:
    proto = network(0.2)
    dense = numpy_helper.to_array(proto.graph.initializer[0])
    places = np.argwhere(dense).astype(np.int64)
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            values=numpy_helper.from_array(dense[tuple(places.T)], "w"),
            indices=numpy_helper.from_array(places),
            dims=dense.shape,
        )
    )
    before = proto.SerializeToString()
    found = load(proto).model.graph.initializers["w"].const_value
    np.testing.assert_array_equal(found.numpy(), dense)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("places", [[0, 600], [-1, 3], [0]])
def test_positions_that_do_not_fit_are_refused(places: list[int]) -> None:
    proto = network(0.2)
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            values=numpy_helper.from_array(np.ones(2, np.float32), "w"),
            indices=numpy_helper.from_array(np.array(places)),
            dims=[20, 30],
        )
    )
    with pytest.raises(InputError, match="sparse initializer 'w' is damaged"):
        load(proto)
