"""The house: few modules at the top, one sentence for every room, names that say something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGES = [
    path
    for folder in ("onnxprune", "passes")
    for path in sorted((ROOT / folder).rglob("__init__.py"))
]
MODULES = [
    path for folder in ("onnxprune", "passes") for path in sorted((ROOT / folder).rglob("*.py"))
]
MOST_LINES = 800


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_top_of_the_package_is_small() -> None:
    top = list((ROOT / "onnxprune").glob("*.py"))
    rooms = [path for path in (ROOT / "onnxprune").iterdir() if (path / "__init__.py").exists()]
    assert len(top) <= 8
    assert len(rooms) <= 14


@pytest.mark.parametrize(
    "path", [path for path in PACKAGES if path.parent != ROOT / "onnxprune"], ids=relative
)
def test_a_room_says_in_one_sentence_what_it_is_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_file_has_a_size_that_can_be_read_and_variables_have_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    tree = ast.parse(text)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert "one" not in names
