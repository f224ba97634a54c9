"""Figures as people read them, refusals by reason, and names that are not to be trusted."""

from __future__ import annotations

import io

import pytest

from onnxprune.compensation.least_squares import LayerFit
from onnxprune.cost.figures import NodeCost
from onnxprune.cost.latency.measure import Latency
from onnxprune.coupling.groups import Refused
from onnxprune.pruning.results import Inspection, Report
from onnxprune.report.figures import bar, count, milliseconds, percent, printable, size
from onnxprune.report.network.network import Network
from onnxprune.report.records import GroupAccount, Provenance, Sizes
from onnxprune.report.sections import group_refusals
from onnxprune.report.text import TextReport, make_console
from onnxprune.verification.certificate import Certificate
from onnxprune.verification.comparison import OutputComparison
from onnxprune.verification.quality import Quality


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (999_960, "1.00 M"),
        (2_247_296, "2.25 M"),
        (17_300_000_000, "17.3 G"),
        (4_000_000_000_000, "4.00 T"),
    ],
)
def test_count(number, text):
    assert count(number) == text


def test_other_figures():
    assert (size(0), size(512), size(175_639)) == ("0 B", "512 B", "176 kB")
    assert (milliseconds(5.273e-6), milliseconds(0.0437)) == ("0.00527 ms", "43.7 ms")
    assert (milliseconds(1.5), milliseconds(0)) == ("1500 ms", "0 ms")
    assert (percent(0.7434), percent(12.3456), percent(None)) == ("74.3 %", "1235 %", "-")
    assert (bar(0), bar(1e-9), bar(1.0)) == ("", "#", "#" * 10)
    assert (bar(0.5, "*", 6), bar(7, "*", 6)) == ("***", "******")
    assert printable("a\x1b[31m\nb") == "a?[31m?b"
    assert printable("abcdefghij", 6) == "ab..ij"


def test_refusals_add_up_by_reason():
    refused = [
        Refused("a", 0, "Add one", "it meets an axis of b that cannot be cut", 10),
        Refused("a", 1, "Add two", "it meets an axis of c that cannot be cut", 30),
        Refused("d", 0, "Softmax s", "Softmax takes statistics over it", 20),
    ]
    first, second = group_refusals(refused)
    assert (first.reason, first.axes) == ("it meets an axis that cannot be cut", 2)
    assert (first.parameters, first.example) == (30, "a[1]")
    assert (second.parameters, second.axes) == (20, 1)


SIZES = Sizes(1000, 2000, 5000, 4000, 2400, 6400, {"batch": 2, "length\x1b": 8})


def shown(groups=1, verbose=False, ratio=(0.48, 0.5, 0.52), name="w[batch]", run=1e-3, **efforts):
    low, middle, high = ratio
    report = Report(
        original=SIZES,
        result=Sizes(500, 1000, 2500, 2000, 1800, 3800, SIZES.extents),
        batch=2,
        certificate=Certificate(1e-7, 1e-4, 2, 0.1),
        outputs=(OutputComparison("y", 0.99, 0.1, 0.95),),
        latency=Latency(run, middle * run, middle, low, high, 9, (low, high)),
        widths={},
        inexact=(),
        refused=(),
        dropped={"odd[0]": "the graph cannot follow"},
        seconds=1.0,
        groups=tuple(
            GroupAccount(i, f"{name}{i}", "channel", 64, 63 - i, ()) for i in range(groups)
        ),
        **{
            "repairs": (),
            "allocation": "uniform",
            "trials": {},
            "padding": {},
            "quality": None,
            "note": "",
            **efforts,
        },
    )
    stream = io.StringIO()
    TextReport(make_console(stream), verbose).pruned("in -> out", report)
    return stream.getvalue()


def test_pruned_says_everything():
    text = shown()
    for words in (
        "50.0 %",
        "holds",
        "1e-07",
        "odd[0]: the graph cannot follow",
        "95.0 %",
        "batch 2",
    ):
        assert words in text
    assert "w[batch]0" in text
    assert "latency" in text
    assert "but the measured latency" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_every_kind_of_cost_stands_side_by_side_with_the_size_it_refers_to():
    lines = [" ".join(line.split()) for line in shown().splitlines()]
    for line in (
        "MACs 2.00 k 1.00 k 50.0 % batch 2, length? 8",
        "parameters 1.00 k 500 50.0 %",
        "file size 5.00 kB 2.50 kB 50.0 %",
        "peak activations 2.40 kB 1.80 kB 75.0 % batch 2, length? 8",
        "memory 6.40 kB 3.80 kB 59.4 % batch 2, length? 8",
    ):
        assert line in lines


def layers(*costs, verbose=False):
    nodes = tuple(NodeCost(f"layer{i}", "MatMul", *cost) for i, cost in enumerate(costs))
    inspection = Inspection(SIZES, 2, nodes, (), (), Network((), ()))
    stream = io.StringIO()
    TextReport(make_console(stream), verbose).inspected("a model", inspection)
    return stream.getvalue()


def test_inspected_gives_totals_and_layers_with_bars():
    bar_of = "\u2588"
    text = layers((2000, 500, 2000, 80), (1000, 250, 1000, 0), (0, 1, 4, 40))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "MACs 2.00 k (batch 2, length? 8)",
        "parameters 1.00 k",
        "peak activations 2.40 kB (batch 2, length? 8)",
        f"layer0 MatMul 2.00 k {bar_of * 6} 500 2.00 kB {bar_of * 6} 80 B {bar_of * 6}",
        f"layer1 MatMul 1.00 k {bar_of * 3} 250 1.00 kB {bar_of * 3} 0 B",
        f"layer2 MatMul 0 1 4 B {bar_of} 40 B {bar_of * 3}",
    ):
        assert line in lines


def test_inspected_keeps_to_100_columns_and_to_the_largest_layers():
    largest = (999_400_000_000, 999_400_000, 999_400_000, 999_400_000)
    nodes = [(n, n, n, n) for n in range(1, 20)]
    text = layers(largest, *nodes)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "and 5 more layers" in text
    assert ("layer19" in text, "layer3 " in text) == (True, False)
    assert "more layers" not in layers(largest, *nodes, verbose=True)
    long = NodeCost("a" * 60, "Quantised" * 3, *largest)
    stream = io.StringIO()
    inspection = Inspection(SIZES, 2, (long,), (), (), Network((), ()))
    TextReport(make_console(stream)).inspected("a model", inspection)
    row = next(line for line in stream.getvalue().splitlines() if line.startswith("aaa"))
    assert len(row) <= 100
    assert row.count("\u2588") == 18


def said(**options):
    """What is printed, without its line breaks."""
    return " ".join(shown(**options).split())


def test_latency_without_gain_is_said_with_the_reason():
    slower, unclear = (1.1, 1.2, 1.3), (0.9, 0.98, 1.1)
    assert "latency shows no clear gain: the time is spent elsewhere." in said(ratio=unclear)
    assert "latency did not fall: the time is spent elsewhere." in said(ratio=slower)
    small = said(ratio=slower, run=9e-5)
    assert "did not fall: a model this small spends its time on operator calls" in small
    padded = said(ratio=slower, padding={16: 1.3})
    assert "did not fall: the widths are no multiples of the blocks" in padded
    assert "latency did not" not in said()


def test_what_alignment_would_buy_is_said():
    text = said(padding={8: 1.05, 16: 1.314}, ratio=(0.78, 0.8, 0.82))
    assert "more than the MACs above (1.31 x with blocks of 16); --round-to 16 or" in text
    assert "blocks" not in said(padding={8: 1.0, 16: 1.05})


def ran_with(**options):
    return {"provenance": Provenance("", "", options, {}, {})}


def test_no_advice_contradicts_the_run():
    padded = {"padding": {8: 1.2, 16: 1.3}, "ratio": (0.78, 0.8, 0.82)}
    assert "blocks of 8, 1.30 x with blocks of 16); --round-to 16 or" in said(**padded)
    # what was asked for is not advised, a wider multiple is
    assert "--round-to" not in said(**padded, **ran_with(round_to=16))
    eight = said(**padded, **ran_with(round_to=8))
    assert "(1.30 x with blocks of 16); --round-to 16" in eight
    assert "blocks of 8" not in eight
    assert "--round-to" not in said(**padded, **ran_with(target={"latency": 0.8}))
    # half of the MACs are left, and about half of the time: no block is computed for nothing
    assert "--round-to" not in said(**padded | {"ratio": (0.51, 0.52, 0.53)})
    slower = {**padded, "ratio": (1.1, 1.2, 1.3)}
    assert "the time is spent elsewhere" in said(**slower, **ran_with(round_to=16))


def test_a_busy_machine_is_said_in_place_of_an_interval():
    text = said(ratio=(0.33, 0.6, 8.45))
    assert "latency 1.00 ms 0.600 ms 60.0 % batch 2, length? 8; machine busy, not reliable" in text
    assert "845" not in text
    assert "close other programs, give --threads 1, or time a larger --batch, and run" in text
    alone = Provenance("", "", {}, {}, {"threads": "1"})
    text = said(ratio=(0.33, 0.6, 8.45), provenance=alone)
    assert "close other programs, or time a larger --batch, and run again." in text
    assert "no clear gain" not in text
    assert "busy" not in said()


def test_quality_names_its_measure_and_its_samples():
    held = Quality("accuracy", 90.25, 89.0, 256, held_out=True)
    assert "accuracy 90.25 -> 89, on 256 samples (held out)" in said(quality=held)
    seen = Quality("my\x1bmetric", 1.0, 0.5, 8, held_out=False)
    assert "my?metric 1 -> 0.5, on 8 samples (also used for calibration)" in said(quality=seen)


def test_long_lists_fold_to_the_largest():
    text = shown(groups=12)
    assert "and 4 more groups" in text
    assert "w[batch]11" in text
    assert "w[batch]0 " not in text
    assert "more groups" not in shown(groups=12, verbose=True)


def test_names_cannot_steer_the_terminal():
    steering = "\x1b[2J[bold]w"
    repairs = (
        LayerFit(steering, 1.0, 0.5, False, "1 unknowns"),
        LayerFit(steering, 1.0, 0.5, True),
    )
    for verbose in (False, True):
        text = shown(name=steering, verbose=verbose, repairs=repairs, note=steering)
        assert "\x1b" not in text
        assert "?[2J[bold]w" in text


def test_the_allocation_that_won_is_said():
    trials = {"raw": 0.0123, "root": 0.02, "balanced": 0.5, "odd": float("inf")}
    text = shown(allocation="raw", trials=trials)
    wanted = "'raw', the best of 4: divergence 0.0123, the others 0.02 to 0.5\n"
    assert wanted in text
    verbose = shown(allocation="raw", trials=trials, verbose=True)
    places = [verbose.index(one) for one in ("raw", "root: 0.02", "balanced: 0.5", "odd: infinite")]
    assert places == sorted(places)
    assert "allocation" not in shown()
    assert "the others 0.02\n" in shown(allocation="a", trials={"a": 0.01, "b": 0.02})
    assert "divergence infinite\n" in shown(allocation="a", trials={"a": float("inf")})


def test_refitted_layers_and_the_others_are_said():
    nan = float("nan")
    repairs = (
        LayerFit("first", 0.5, 0.1, True),
        LayerFit("second", 0.7, 0.3, True),
        LayerFit("third", 0.2, 0.2, False),
        *(LayerFit(f"wide{i}", nan, nan, False, "9000 unknowns are more than 6000") for i in "ab"),
    )
    text = " ".join(shown(repairs=repairs).split())
    assert "2 of 5 layers re-fitted; median error 60 % -> 20 % of output variance" in text
    assert "not re-fitted no better on held-out samples: third" in text
    assert "not re-fitted 9000 unknowns are more than 6000: widea and 1 more" in text
    assert "first: 50" not in text
    verbose = " ".join(shown(repairs=repairs, verbose=True).split())
    assert "first: 50 % -> 10 % second: 70 % -> 30 %" in verbose
    assert "more than 6000: widea, wideb" in verbose
    small = " ".join(shown(repairs=(LayerFit("one", 0.000123, 4e-7, True),)).split())
    assert "1 of 1 layer re-fitted; median error 0.0123 % -> 4e-05 % of" in small
    assert "0 of 1 layer re-fitted not re-fitted" in " ".join(shown(repairs=repairs[2:3]).split())


def test_shares_of_the_macs_and_what_nothing_makes_up_for_are_said():
    repairs = (
        LayerFit("first", 0.5, 0.1, True, cut=True, macs=600),
        LayerFit("second", 0.7, 0.7, False, cut=True, macs=100),
        LayerFit("third", 0.7, 0.7, False, "its weight is an output too", True, 300),
    )
    text = " ".join(shown(repairs=repairs, unfolded={"s": "GRU has no bias"}).split())
    assert "1 of 3 layers re-fitted, 60.0 % of their MACs; median error" in text
    third = text.index("not re-fitted its weight is an output too: third (30.0 % of the MACs)")
    assert third < text.index("not re-fitted no better on held-out samples: second (10.0 %")
    assert "not made up for GRU has no bias: s" in text
    assert "curves estimated a GRU: s" in " ".join(shown(estimated={"s": "a GRU"}).split())


def test_what_became_of_initializers_that_are_inputs_is_said():
    cut = {f"w[{i}]": ((8, 4), (6, 4)) for i in range(4)} | {"gone": ((2,), None)}
    text = " ".join(shown(cut_inputs=cut).split())
    assert "5 initializers that are inputs too have a new shape" in text
    assert "(1 of them read by nothing and removed)" in text
    assert "values of the old shape cannot be given for them any more (w[0], w[1]" in text
    assert "w[3], gone" in " ".join(shown(cut_inputs=cut, verbose=True).split())
    assert "1 initializer that is an input too has a new shape: values" in " ".join(
        shown(cut_inputs={"w": ((8,), (6,))}).split()
    )
    assert "initializer" not in shown()


def test_what_was_done_differently_is_said():
    text = shown(note="least-squares compensation was not possible: it is too large")
    assert "note         least-squares compensation was not possible: it is too large\n" in text
    assert "note" not in shown()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_only_where_it_is_wanted(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for forbidden in (False, True):
        if forbidden:
            monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        make_console(stream).print("x", style="red")
        assert ("\x1b[31m" in stream.getvalue()) is not forbidden
