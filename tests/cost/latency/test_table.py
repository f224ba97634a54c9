"""The table of a model: adds up to what was measured, follows kernels where it can time them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers.kernel_clock import install, smooth, staircase
from helpers.oracle import ONE_THREAD, Traced, parse, traced
from helpers.versions import listed

from onnxprune.cost.cut_cost import CutCost
from onnxprune.cost.latency.cache import TimingCache
from onnxprune.cost.latency.probe import Profile
from onnxprune.cost.latency.table import LatencyTable
from onnxprune.errors import RuntimeFailure

MILLISECOND, CALL = 1e-3, 5e-6


def network(width: int = 64) -> Traced:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 3, 24, 24] x) => (float[a, 10] y) {
            h = Conv<pads = [1, 1, 1, 1]>(x, w)
            r = Sigmoid(h)
            s = Conv<pads = [1, 1, 1, 1]>(r, v)
            p = GlobalAveragePool(s)
            f = Flatten(p)
            y = Gemm(f, u)
        }"""
    shapes = {"w": (width, 3, 3, 3), "v": (width, width, 3, 3), "u": (width, 10)}
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
    return traced(parse(text, weights))


def table(one: Traced, folder: Path | None = None) -> LatencyTable:
    return LatencyTable(one.model, one.coupling.facts, ONE_THREAD, TimingCache(folder))


def seconds(one: Traced, made: LatencyTable, gone: int) -> dict[str, float]:
    """Seconds by first input's name, with so many channels of `w` gone."""
    cut = one.cut(one.units("w", 0)[:gone].tolist())
    return {node.inputs[0].name: made.seconds(node, cut.shape) for node in one.model.graph}


def test_nodes_add_up_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = install(monkeypatch, staircase)
    one = network()
    made = table(one)
    cost = CutCost(one.model.graph, one.coupling, {"latency": made.seconds})
    assert cost.after(())["latency"] == pytest.approx(made.measured)
    assert clock.asked == []


@pytest.fixture
def _a_millisecond_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile in which every kernel takes 1 ms, and every call 5 us."""

    def profile(model: ir.Model, *_: object) -> Profile:
        count = len(list(model.graph))
        return Profile((MILLISECOND,) * count, CALL, count * (MILLISECOND + CALL))

    monkeypatch.setattr("onnxprune.cost.latency.table.profile_model", profile)


@pytest.mark.usefixtures("_a_millisecond_each")
def test_kernels_fall_as_they_do_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, staircase)
    cut = seconds(one := network(), table(one), 32)
    made = staircase((1, 3, 32)) / staircase((1, 3, 64))
    read = staircase((1, 32, 64)) / staircase((1, 64, 64))
    assert cut["x"] == pytest.approx(CALL + made * MILLISECOND)
    assert cut["r"] == pytest.approx(CALL + read * MILLISECOND)


@pytest.mark.usefixtures("_a_millisecond_each")
def test_a_cut_within_a_step_saves_nothing_of_a_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, staircase)
    cut = seconds(one := network(), table(one), 8)
    assert cut["x"] == cut["r"] == pytest.approx(CALL + MILLISECOND)


@pytest.mark.usefixtures("_a_millisecond_each")
def test_other_operators_fall_with_what_they_write(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, staircase)
    cut = seconds(one := network(), table(one), 8)
    launch = 1e-6
    assert cut["h"] == pytest.approx(CALL + launch + 56 / 64 * (MILLISECOND - launch))
    assert cut["s"] == pytest.approx(CALL + MILLISECOND)


@pytest.mark.usefixtures("_a_millisecond_each")
def test_an_operator_that_cannot_run_alone_follows_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(widths: tuple[int, ...]) -> float:
        raise RuntimeFailure("not alone")

    install(monkeypatch, refused)
    one = network()
    made = table(one)
    assert seconds(one, made, 32)["r"] == pytest.approx(MILLISECOND / 2, rel=0.02)
    node = list(one.model.graph)[2]
    assert made.multiples(node, one.cut(one.units("w", 0)[:8].tolist()).shape) == {}


@pytest.mark.usefixtures("_a_millisecond_each")
def test_what_has_no_known_shape_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, staircase)
    one = network()
    made = table(one)
    nothing: dict[str, tuple[int, ...]] = {}
    for node in one.model.graph:
        assert made.seconds(node, nothing.__getitem__) == CALL + MILLISECOND


def test_changed_widths_and_their_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda w: staircase(w) if len(w) == 3 and w[0] == 1 else smooth(w))
    one = network()
    made = table(one)
    nodes = list(one.model.graph)
    cut = one.cut(one.units("w", 0)[:1].tolist())
    assert made.multiples(nodes[0], cut.shape) == {2: (1, 16)}
    assert made.multiples(nodes[1], cut.shape) == {}
    assert made.multiples(nodes[2], cut.shape) == {1: (1, 16)}


def test_the_next_table_on_this_machine_times_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = install(monkeypatch, staircase)
    one = network()
    seconds(one, table(one, tmp_path), 32)
    assert first.asked
    second = install(monkeypatch, staircase)
    seconds(network(), table(network(), tmp_path), 32)
    assert second.asked == []


def test_kernels_of_equal_shapes_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 64, 8, 8] x) => (float[a, b, c, d] y) {
            h = Conv(x, w) r = Sigmoid(h) s = Conv(r, v) t = Sigmoid(s) y = Conv(t, u)
        }"""
    weights = {name: np.ones((64, 64, 1, 1), np.float32) for name in "wvu"}
    one = traced(parse(text, weights))
    clock = install(monkeypatch, staircase)
    made = table(one)
    cut = one.cut([*one.units("w", 0)[:32].tolist(), *one.units("v", 0)[:32].tolist()])
    for node in one.model.graph:
        made.seconds(node, cut.shape)
    assert len(clock.asked) == len(set(clock.asked))


def test_weights_are_timed_as_onnxruntime_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As constants up to IR version 3; from then on as they come where they are inputs too."""
    clean = network()
    fixed = []
    for proto in (clean.proto, listed(clean.proto), listed(clean.proto, ir_version=8)):
        clock = install(monkeypatch, smooth)
        one = traced(proto)
        seconds(one, table(one), 8)
        weights = [kernel.operands[1] for kernel in clock.kernels]
        fixed.append({weight.constant for weight in weights if weight is not None})
    assert fixed == [{True}, {True}, {False}]
