"""Every page opens in a real browser without a complaint, and what can be clicked works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import pages as made_up

KINDS = ("run", "pipeline", "sweep", "sensitivity")
SORTED = {"run": "remains", "pipeline": "parameters", "sweep": "parameters", "sensitivity": "units"}
"""A column of the first table that sorts, by kind of page."""


def complaints(browser):
    return [one["message"] for one in browser.get_log("browser")]


def column(browser, number):
    """Cells of the first table that sorts."""
    script = (
        "return [...document.querySelector('table.sortable').tBodies[0].rows]"
        ".map(row => row.cells[arguments[0]].dataset.value"
        " ?? row.cells[arguments[0]].textContent.trim())"
    )
    return browser.execute_script(script, number)


def click(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def displayed(browser, selector):
    script = "return getComputedStyle(document.querySelector(arguments[0])).display !== 'none'"
    return browser.execute_script(script, selector)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_opens_without_a_complaint_and_without_the_network(show, pages, tmp_path, kind, scheme):
    browser = show(pages[kind], scheme)
    assert browser.title.endswith("- onnxprune")
    assert complaints(browser) == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    # nothing sticks out to the side
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    folder = Path(os.environ.get("ONNXPRUNE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.set_window_size(1180, min(height + 140, 8000))
    image = folder / f"{kind}-{scheme}.png"
    assert browser.save_screenshot(str(image))
    assert image.stat().st_size > 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_tables_sort_both_ways(show, pages, kind):
    browser = show(pages[kind])
    heads = browser.execute_script(
        "return [...document.querySelector('table.sortable').tHead.rows[0].cells]"
        ".map(one => one.textContent.trim())"
    )
    number = heads.index(SORTED[kind])
    button = f"table.sortable th:nth-child({number + 1}) button"
    before = column(browser, number)
    click(browser, button)
    rising = [float(one) for one in column(browser, number)]
    assert rising == sorted(float(one) for one in before)
    click(browser, button)
    assert [float(one) for one in column(browser, number)] == rising[::-1]
    assert complaints(browser) == []


def test_groups_that_stayed_whole_can_be_hidden(show, pages):
    browser = show(pages["run"])
    assert displayed(browser, "tr.whole")
    click(browser, "#only-cut")
    assert not displayed(browser, "tr.whole")


def test_layers_of_the_picture_lead_to_their_groups(show, pages):
    browser = show(pages["run"])
    links = browser.execute_script(
        "return [...document.querySelectorAll('.picture a')].map(one => one.getAttribute('href'))"
    )
    if not links:
        pytest.skip("the picture needs pygraphviz")
    missing = browser.execute_script(
        "return arguments[0].filter(one => document.querySelector(one) === null)", links
    )
    assert missing == []
    browser.execute_script(
        "document.querySelector('.picture a')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    )
    assert browser.execute_script("return location.hash") == links[0]


def test_the_measure_of_quality_can_be_chosen(show, pages):
    browser = show(pages["sweep"])
    assert displayed(browser, ".answers")
    assert not displayed(browser, ".diverging")
    click(browser, "#diverging")
    assert not displayed(browser, ".answers")
    assert displayed(browser, ".diverging")


def test_a_dot_says_what_it_is(show, pages):
    chains = pytest.importorskip("selenium.webdriver").ActionChains
    browser = show(pages["sweep"])
    dot = browser.find_element("css selector", ".answers circle")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", dot
    )
    chains(browser).move_to_element(dot).perform()
    told = browser.execute_script("return document.getElementById('tip').innerText")
    assert displayed(browser, "#tip")
    assert "macs=" in told
    assert "->" in told


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_do_nothing(show, tmp_path, kind):
    texts = {
        "run": lambda: made_up.report().to_html(),
        "pipeline": lambda: made_up.pipeline().to_html(),
        "sweep": lambda: made_up.sweep().to_html(),
        "sensitivity": lambda: made_up.sensitivity().to_html(made_up.HOSTILE),
    }
    path = tmp_path / "page.html"
    path.write_text(texts[kind](), encoding="utf-8")
    browser = show(path)
    assert browser.title != "hacked"
    assert browser.execute_script("return document.images.length") == 0
    assert complaints(browser) == []
    table = browser.execute_script("return document.querySelectorAll('table').length")
    assert table > 0


def test_everything_can_be_read_without_a_script(show, pages):
    browser = show(pages["run"])
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(pages["run"].as_uri())
        words = browser.find_element("css selector", "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "Certificate holds" in words
    assert "How this was made" in words
