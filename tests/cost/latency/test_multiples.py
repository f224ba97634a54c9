"""Which multiple every group should keep, where the truth is a formula."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_clock import Formula, install, smooth, staircase
from helpers.oracle import ONE_THREAD, parse, traced

from onnxprune.cost.latency.cache import TimingCache
from onnxprune.cost.latency.table import LatencyTable, group_multiples
from onnxprune.importance.removal_order import aligned, removal_order


def multiples(
    body: str, weights: dict[str, tuple[int, ...]], inputs: str, formula: Formula
) -> dict[str, int]:
    """Multiple of every group; checks that each leaves its group two levels at least."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
        g ({inputs}) => (float y) {{ {body} }}"""
    rng = np.random.default_rng(0)
    filled = {name: rng.standard_normal(one).astype(np.float32) for name, one in weights.items()}
    proto = parse(text, filled)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    one = traced(proto)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, formula)
        table = LatencyTable(one.model, one.coupling.facts, ONE_THREAD, TimingCache(None))
        found = group_multiples(table, one.model.graph, one.coupling, one.groups)
    assert found.keys() == {group.name for group in one.groups}
    for group in one.groups:
        order = removal_order(group, np.arange(group.size, dtype=np.float64))
        assert aligned(group, order, found[group.name])
    return found


CONVOLUTIONS = "h = Conv(x, w) r = Relu(h) y = Conv(r, v)"
IMAGE = "float[1, 3, 12, 12] x"


def convolutions(width: int, formula: Formula) -> int:
    weights = {"w": (width, 3, 3, 3), "v": (16, width, 3, 3)}
    (multiple,) = multiples(CONVOLUTIONS, weights, IMAGE, formula).values()
    return multiple


def test_a_group_between_convolutions_keeps_their_step() -> None:
    assert convolutions(64, staircase) == 16


def test_nothing_is_rounded_where_time_is_smooth() -> None:
    assert convolutions(64, smooth) == 1


@pytest.mark.parametrize(("width", "multiple"), [(100, 16), (32, 16), (16, 1), (12, 1)])
def test_a_group_of_one_block_is_not_rounded(width: int, multiple: int) -> None:
    assert convolutions(width, staircase) == multiple


def test_matrices_are_not_rounded_although_convolutions_are() -> None:
    body = """h = Conv(x, w) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p)
        s = MatMul(f, v) t = Relu(s) y = MatMul(t, u)"""
    weights = {"w": (64, 3, 3, 3), "v": (64, 128), "u": (128, 10)}
    found = multiples(body, weights, IMAGE, lambda w: staircase(w) if len(w) == 3 else smooth(w))
    assert found == {"w[0]": 16, "v[1]": 1}


def test_groups_of_channels_count_as_so_many() -> None:
    # one group of four channels goes at a time: its 16 groups are the width that is computed
    body = "h = Conv(x, w) r = Relu(h) s = Conv<group = 16>(r, v) y = Conv(s, u)"
    weights = {"w": (64, 3, 1, 1), "v": (64, 4, 1, 1), "u": (16, 64, 1, 1)}
    found = multiples(body, weights, IMAGE, staircase)
    assert set(found.values()) <= {1, 4, 8, 16}
