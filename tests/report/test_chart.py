"""Charts are SVG documents that stand alone."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from onnxprune.report.charts import Dot, Line, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def panel(*dots: Dot, logarithmic: bool = False, names: tuple[str, ...] = ("a",)) -> Panel:
    lines = tuple(Line(name, dots) for name in names)
    return Panel("Title", "across", lines, "{:g}".format, "{:g}".format, logarithmic)


def parts(text: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(text).iter(SVG + tag))


def texts(text: str) -> list[str]:
    return [one.text or "" for one in parts(text, "text")]


def test_nothing_comes_from_elsewhere_and_nothing_runs() -> None:
    text = draw([panel(Dot(1, 2), Dot(2, 3))], "chart")
    assert parts(text, "script") == []
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text


def test_dots_lie_where_their_values_are() -> None:
    text = draw([panel(Dot(0, 0), Dot(1, 10), Dot(2, 20))], "chart")
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in parts(text, "circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert x0 < x2
    assert y0 > y2  # up is less in SVG


def test_powers_are_equally_far_apart_on_a_logarithmic_scale() -> None:
    text = draw([panel(Dot(0, 0.001), Dot(1, 0.01), Dot(2, 0.1), logarithmic=True)], "chart")
    heights = [float(one.get("cy", "")) for one in parts(text, "circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11)
    assert {"0.001", "0.01", "0.1"} <= set(texts(text))


def test_axes_have_round_numbers() -> None:
    shown = texts(draw([panel(Dot(0.31, 97.2), Dot(0.89, 99.8))], "chart"))
    assert {"0.4", "0.6", "0.8", "98", "99"} <= set(shown)


def test_hollow_dots_are_off_the_line() -> None:
    text = draw([panel(Dot(0, 0), Dot(1, 5, "beaten", filled=False), Dot(2, 1))], "chart")
    (line,) = parts(text, "polyline")
    assert len(line.get("points", "").split()) == 2
    assert [one.get("class", "").split()[0] for one in parts(text, "circle")] == [
        "f0",
        "hollow",
        "f0",
    ]


@pytest.mark.parametrize("dots", [[Dot(0.5, 1.0)], [Dot(0.5, 0.0), Dot(0.5, 0.0)]])
def test_values_without_a_range(dots: list[Dot]) -> None:
    text = draw([panel(*dots)], "chart")
    assert len(parts(text, "circle")) == len(dots)
    assert "nan" not in text


def test_panels_without_dots_are_left_out() -> None:
    text = draw([panel(), panel(Dot(1, 1))], "chart")
    assert len(parts(text, "polyline")) == 1
    assert ET.fromstring(draw([], "nothing")).tag == f"{SVG}svg"


def test_several_lines_are_named() -> None:
    shown = texts(draw([panel(Dot(1, 1), Dot(2, 2), names=("one", "two"))], "chart"))
    assert {"one", "two"} <= set(shown)
    assert "one" not in texts(draw([panel(Dot(1, 1), names=("one",))], "chart"))


def test_names_cannot_break_out() -> None:
    text = draw([panel(Dot(1, 1, '</svg><script>"&\x00'))], "<b>")
    assert parts(text, "script") == []
    assert parts(text, "title")[0].text == "<b>"
