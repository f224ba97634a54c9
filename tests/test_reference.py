"""The reference is what the docstrings say."""

from __future__ import annotations

import subprocess
import sys

from helpers.paths import ROOT

import onnxprune
from onnxprune.options import BATCH, LABELS, METRIC, OPTIONS, RUNTIME_OPTIONS


def test_the_reference_is_up_to_date_and_has_every_public_name() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"], check=False
    )
    assert made.returncode == 0, "run: python docs/make_reference.py"
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in onnxprune.__all__:
        assert f"\n## `{name}`\n" in text
    for option in (*OPTIONS, LABELS, METRIC, BATCH, *RUNTIME_OPTIONS):
        assert f"| `{option.name}` | {option.expects} |" in text
