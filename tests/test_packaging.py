"""What is installed: every package of the tree, passes/ under its own name."""

from __future__ import annotations

import sys

from helpers.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def packages_of(folder: str, name: str) -> set[str]:
    """Names of the packages in a folder that is installed under a name."""
    parents = (
        path.parent.relative_to(ROOT / folder) for path in ROOT.glob(f"{folder}/**/__init__.py")
    )
    return {".".join((name, *parent.parts)) for parent in parents}


def test_every_package_of_the_tree_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    expected = packages_of("onnxprune", "onnxprune") | packages_of("passes", "onnxprune.passes")
    assert set(project["tool"]["setuptools"]["packages"]) == expected


def test_no_symbolic_link_is_needed() -> None:
    links = [
        path
        for folder in ("onnxprune", "passes")
        for path in (ROOT / folder).rglob("*")
        if path.is_symlink()
    ]
    assert links == []
    assert not (ROOT / "onnxprune" / "passes").exists()
