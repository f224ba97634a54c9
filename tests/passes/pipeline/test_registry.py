"""Which passes there are, and where they are found."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from onnxprune.errors import InputError
from onnxprune.passes.pipeline import registry
from onnxprune.passes.pipeline.registry import find_pass, installed_passes

OURS = {"remove-lossless", "merge-duplicates", "prune", "sparsify-weights", "finetune", "quantize"}


def test_ours_are_listed_with_a_line_each() -> None:
    found = {one.name: one for one in installed_passes()}
    assert found.keys() >= OURS
    for one in found.values():
        assert one.summary.endswith("."), one.name
        assert all(option.help for option in one.options), one.name


def test_a_pass_of_any_package() -> None:
    found = find_pass("onnx_ir.passes.common:RemoveUnusedNodesPass")
    assert not found.ours
    assert found.source == "onnx_ir"


def test_a_pass_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('def tidy(model, depth: int = 2):\n    """Tidy up."""\n')
    found = find_pass(f"{path}:tidy")
    assert found.summary == "Tidy up."
    assert [(one.name, one.default) for one in found.options] == [("depth", 2)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "has no function 'tidy'"),
        ("tidy = 3", "a pass is an onnx-ir pass"),
        ("def tidy(x): pass", "the first parameter of the function has to be"),
        ("import nowhere", "importing it"),
        ("def tidy(x: 'list | dict'): pass", "the first parameter of the function has to be"),
    ],
)
def test_what_is_no_pass(tmp_path: Path, code: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(InputError, match=words):
        find_pass(f"{path}:tidy")


def test_a_pass_of_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    good = "onnx_ir.passes.common:RemoveUnusedNodesPass"
    points = EntryPoints(
        [
            EntryPoint("tidy", good, "onnxprune.passes"),
            EntryPoint("broken", "nowhere:Nothing", "onnxprune.passes"),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", lambda **given: points.select(**given))
    assert find_pass("tidy").made_by.__name__ == "RemoveUnusedNodesPass"
    listed = {one.name: one.summary for one in installed_passes()}
    assert listed["broken"].startswith("broken: ")
    with pytest.raises(InputError, match="did you mean 'tidy'"):
        find_pass("tidi")
