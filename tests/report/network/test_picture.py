"""The picture of a network stands alone, shows every layer, and lets no name out of its text."""

from __future__ import annotations

import builtins
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import MODELS

from onnxprune.cli import main
from onnxprune.errors import InputError
from onnxprune.report.network.network import Network, NetworkNode, Segment
from onnxprune.report.network.picture import network_svg

SVG = "{http://www.w3.org/2000/svg}"

pytest.importorskip("pygraphviz", reason="the extra `report` is not installed")


def network(*widths: tuple[int | None, int, int], name: str = "layer") -> Network:
    """Layers in a row, each with its group, and its width before and after."""
    nodes = [NetworkNode("input", "x", "input", (), ())]
    for index, (group, before, after) in enumerate(widths):
        segments = (Segment(group, before, after),)
        nodes.append(NetworkNode("layer", f"{name}{index}", "MatMul", segments, (index,)))
    nodes.append(NetworkNode("output", "y", "output", (), (len(widths),)))
    return Network(tuple(nodes), tuple(f"w{one}[1]" for one in range(len(widths))), True)


def elements(text: str, tag: str, kind: str = "") -> list[ET.Element]:
    found = ET.fromstring(text).iter(SVG + tag)
    return [one for one in found if kind in one.get("class", "").split() or not kind]


def bars(text: str, kind: str) -> list[float]:
    """Lengths of the bars of a class in the drawing, without those that explain it."""
    drawing = ET.fromstring(text).find(f"{SVG}g")
    assert drawing is not None
    return [
        float(one.get("width", "nan"))
        for one in drawing.iter(f"{SVG}rect")
        if kind in one.get("class", "").split()
    ]


def texts(text: str) -> set[str]:
    return {one.text or "" for one in elements(text, "text")}


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    text = network_svg(network((0, 8, 4)), title="a model")
    assert elements(text, "script") == []
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#network-hatch", "#network-tip"}
    assert "prefers-color-scheme: dark" in text


def test_cards_say_name_operator_and_widths() -> None:
    shown = texts(network_svg(network((0, 64, 48), (None, 10, 10))))
    assert {"layer0", "64 \u2192 48", "layer1", "10", "MatMul", "x", "y"} <= shown


def test_the_removed_part_of_a_bar_is_to_scale() -> None:
    text = network_svg(network((0, 64, 48)))
    kept, gone = bars(text, "g0")
    assert gone / (kept + gone) == pytest.approx(1 / 4, rel=0.01)
    assert bars(text, "gone") == bars(text, "hatch") == [gone]


def test_bars_grow_with_the_square_root_of_the_width() -> None:
    text = network_svg(network((None, 400, 400), (None, 100, 100)))
    longer, shorter = bars(text, "whole")
    assert longer / shorter == pytest.approx(2, rel=0.01)


def test_a_group_has_one_colour_and_its_neighbours_have_others() -> None:
    text = network_svg(network((0, 8, 8), (1, 8, 8), (0, 8, 8), (2, 8, 8)))
    assert [len(bars(text, colour)) for colour in ("g0", "g1", "g2")] == [2, 1, 1]


def test_colours_are_used_again_only_when_all_have_been_used() -> None:
    many = network_svg(network(*((group, 8, 8) for group in range(10))))
    assert [len(bars(many, f"g{colour}")) for colour in range(7)] == [2, 2, 2, 1, 1, 1, 1]


def test_layers_link_to_the_rows_of_their_groups_only_on_a_page() -> None:
    subject = network((0, 8, 8), (1, 8, 4), (None, 3, 3))
    on_a_page, alone = network_svg(subject, anchor="group-"), network_svg(subject)
    assert {one.get("href") for one in elements(on_a_page, "a")} == {"#group-0", "#group-1"}
    stops = [one for one in elements(on_a_page, "a") if one.get("tabindex") is None]
    assert [one.get("href") for one in stops] == ["#group-0", "#group-1"]
    assert all(one.get("aria-label") for one in stops)
    assert elements(alone, "a") == []


def test_a_repeated_layer_has_a_stripe_for_each_repetition() -> None:
    text = network_svg(network(*((group, 64, 10 + group) for group in range(50))))
    assert len(bars(text, "block")) == 1
    assert {"\u00d7 50", "64 \u2192 10\u201359"} <= texts(text)
    gone = bars(text, "gone")
    assert len(gone) == 50
    assert gone == sorted(gone, reverse=True)


def test_descriptions_name_group_and_reason() -> None:
    subject = network((0, 8, 6), (None, 3, 3))
    last = replace(subject.nodes[2], reason="it is an output")
    subject = replace(subject, nodes=(*subject.nodes[:2], last, subject.nodes[3]))
    described = "\n".join(one.text or "" for one in elements(network_svg(subject), "title"))
    assert "group w0[1]: 8 \u2192 6" in described
    assert "cannot be cut: it is an output" in described


def test_cards_do_not_overlap() -> None:
    branches = [NetworkNode("input", "x", "input", (), ())]
    for index in range(6):
        segments = (Segment(index, 8, 8),)
        branches.append(NetworkNode("layer", f"branch{index}", "MatMul", segments, (0,)))
    branches.append(NetworkNode("join", "all", "Concat", (), tuple(range(1, 7))))
    text = network_svg(Network(tuple(branches), tuple("abcdef")))
    places = []
    for group in elements(text, "g"):
        card = group.find(f".//{SVG}rect[@class='card']")
        if card is not None and (moved := re.findall(r"[\d.]+", group.get("transform", ""))):
            size = float(card.get("width", "0")), float(card.get("height", "0"))
            places.append((float(moved[0]), float(moved[1]), *size))
    cards = [one for one in places if one[2] > 200]
    assert len(cards) == 6
    for number, (x, y, width, height) in enumerate(cards):
        for left, top, _, _ in cards[:number]:
            assert abs(left - x) >= width or abs(top - y) >= height


@pytest.mark.parametrize(
    "name",
    [
        '"><script>alert(1)</script>',
        "</title></svg><img src=x onerror=alert(1)>",
        "a\x00b\x1b[31m\u202e\ud800",
        "&amp;" * 50,
        '" [label="x", URL="http://evil"] //',
    ],
)
@pytest.mark.parametrize("anchor", ["", "group-"])
def test_names_stay_text(name: str, anchor: str) -> None:
    subject = network((0, 8, 4), (None, 3, 3), name=name)
    ends = [replace(one, name=name, reason=name, operator=name) for one in subject.nodes]
    subject = replace(subject, nodes=tuple(ends), groups=(name, name))
    text = network_svg(subject, title=name, anchor=anchor)
    tags = {one.tag.removeprefix(SVG) for one in ET.fromstring(text).iter()}
    assert tags <= {
        *("svg", "title", "style", "defs", "pattern", "marker", "line", "path", "rect"),
        *("text", "g", "a"),
    }
    attributes = {key for one in ET.fromstring(text).iter() for key in one.attrib}
    assert not any(key.startswith("on") for key in attributes)
    text.encode("utf-8")


def test_a_network_of_nothing_is_a_picture_of_nothing() -> None:
    assert bars(network_svg(Network((), ())), "card") == []


def test_a_network_too_large_to_look_at_is_refused() -> None:
    subject = network(*((None, width, width) for width in range(1, 1200)))
    with pytest.raises(InputError, match="readable up to"):
        network_svg(subject)


def test_the_error_without_the_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pygraphviz":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"onnxprune\[report\]"):
        network_svg(network((0, 8, 8)))


def test_the_same_network_gives_the_same_picture() -> None:
    subject = network((0, 8, 8), (1, 16, 4), (0, 8, 8))
    assert network_svg(subject) == network_svg(subject)


def test_inspect_draws_every_layer_of_a_model(tmp_path: Path) -> None:
    out = tmp_path / "network.svg"
    assert main(["inspect", str(MODELS / "digits_resnet.onnx"), "--svg", str(out), "-q"]) == 0
    names = texts(out.read_text(encoding="utf-8"))
    assert "digits_resnet.onnx" in names
    assert {"/stem/stem.0", "/blocks/blocks.0/conv1", "/classifier", "images", "logits"} <= names
    assert "removed" not in names


def test_inspect_never_draws_over_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes((MODELS / "digits_mlp.onnx").read_bytes())
    before = model.read_bytes()
    assert main(["inspect", str(model), "--svg", str(model)]) == 2
    assert model.read_bytes() == before
