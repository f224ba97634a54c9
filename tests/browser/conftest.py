"""Headless Chromium, and pages of real runs for it to open."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

from onnxprune.cli import main

MODEL = ROOT / "models" / "digits_resnet.onnx"
SAMPLES = ROOT / "models" / "digits_resnet_calibration.npz"


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A browser without a window; tests are skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver here; `make browser-test` installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, made by the command line."""
    folder = tmp_path_factory.mktemp("pages")
    common = ["--calibration", str(SAMPLES), "-q"]
    made = {
        "run": folder / "report.html",
        "pipeline": folder / "pipeline.html",
        "sweep": folder / "sweep" / "sweep.html",
        "sensitivity": folder / "sensitivity.html",
    }
    small = str(folder / "small.onnx")
    passes = ["--passes", "prune,sparsify-weights,quantize", "--target", "macs=0.6"]
    commands = (
        ["prune", str(MODEL), small, "--target", "macs=0.5", "--report", str(made["run"])],
        ["prune", str(MODEL), small, *passes, "--report", str(made["pipeline"])],
        ["sweep", str(MODEL), "--out", str(folder / "sweep"), "--target", "macs=0.8,0.5"],
        ["sensitivity", str(MODEL), "--html", str(made["sensitivity"])],
    )
    for words in commands:
        more = ["--baselines"] if words[0] == "sweep" else []
        assert main([*words, *more, *common]) == 0
    return made


@pytest.fixture
def show(browser: object) -> Callable[..., object]:
    """Open a file, light or dark, and return the browser."""

    def opened(path: Path, scheme: str = "light") -> object:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.set_window_size(1180, 900)
        browser.get(path.as_uri())
        return browser

    return opened
