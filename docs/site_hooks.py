"""MkDocs hooks: README.md is the home page of the site, CONTRIBUTING.md a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside of docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Point links at the pages of the site."""
    for source, page in PAGES.items():
        for link in (source, f"../{source}"):
            markdown = markdown.replace(f"]({link}", f"]({page}")
    return markdown.replace("](docs/", "](")
