"""Write docs/reference.md from docstrings and declared options; needs griffe2md (extra dev).

With `--check` nothing is written: exit code 1 says that the page is not up to date.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import griffe
from griffe2md import ConfigDict, render_object_docs

import onnxprune
from onnxprune.calibration.audio import Audio
from onnxprune.calibration.images import Images
from onnxprune.calibration.texts import Texts
from onnxprune.declaration import Option, declared_options
from onnxprune.options import BATCH, BEST_EFFORT, LABELS, METRIC, OPTIONS, RUNTIME_OPTIONS
from onnxprune.passes.pipeline.registry import BUILT_IN, find_pass

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference.md"
HEAD = """# Reference

Made from docstrings and declared options by `make reference`: what can be imported from
`onnxprune`, then the [options of `prune`](#options-of-prune), of [readers](#options-of-readers) and
of the other [passes](#options-of-passes).
"""
OPTIONS_HEAD = """## Options of `prune`

Parameters of `onnxprune.prune`, flags of `onnxprune prune` (with - for _) and options of the pass
`prune`; most are options of `sweep` and `sensitivity` too.

"""
READERS_HEAD = """## Options of readers

Of `onnxprune.Images`, `Texts` and `Audio`, and keys of `--images`, `--tokenizer` and `--audio`.
"""
LOOK = ConfigDict(
    heading_level=2,
    show_root_full_path=False,
    show_root_toc_entry=False,
    show_if_no_docstring=False,
    show_submodules=False,
    show_bases=True,
    docstring_style="google",
    docstring_section_style="list",
    annotations_path="brief",
    show_signature_annotations=True,
    separate_signature=True,
    line_length=100,
)

LINK = re.compile(r"\[([^][]+)\]\(#([\w.]+)\)")
HEADING = re.compile(r"^(#+ `)onnxprune\.[\w.]*?([A-Z]\w*\.\w+`)$", re.MULTILINE)


def _link(match: re.Match[str]) -> str:
    """Keep a link to a public name, which has a heading on the page; of others keep the text."""
    text, name = match[1], match[2].rpartition(".")[2]
    public = match[2].startswith("onnxprune.") and name in onnxprune.__all__
    return f"[{text}](#{name.lower()})" if public else text


def reference() -> str:
    """The page: every public name in the order of the alphabet."""
    with tempfile.TemporaryDirectory() as folder:
        # the package as it is installed: passes/ stands beside it in the repository
        shutil.copytree(ROOT / "onnxprune", Path(folder, "onnxprune"))
        shutil.copytree(ROOT / "passes", Path(folder, "onnxprune", "passes"))
        package = griffe.load(
            Path(folder, "onnxprune"), docstring_parser="google", resolve_aliases=True
        )
    parts = [HEAD]
    for name in sorted(onnxprune.__all__, key=str.lower):
        home = getattr(onnxprune, name)
        if home.__qualname__ != name:
            same = f"[`{home.__qualname__}`](#{home.__qualname__.lower()})"
            parts.append(f"## `{name}`\n\nAnother name of {same}.\n\n")
            continue
        path = f"{home.__module__.removeprefix('onnxprune.')}.{home.__qualname__}"
        text = HEADING.sub(r"\1\2", render_object_docs(package[path], LOOK))
        parts.append(LINK.sub(_link, text))
    parts.append(
        OPTIONS_HEAD + table((*OPTIONS, LABELS, METRIC, BEST_EFFORT, BATCH, *RUNTIME_OPTIONS))
    )
    parts.append(READERS_HEAD)
    parts += [
        f"### `{reader.__name__}`\n\n{table(declared_options(reader))}"
        for reader in (Images, Texts, Audio)
    ]
    parts.append("## Options of passes\n")
    for name in (name for name in BUILT_IN if name != "prune"):
        described = find_pass(name)
        parts.append(f"### `{name}`\n\n{described.summary}\n\n{table(described.options)}")
    return "\n".join(parts)


def table(options: Iterable[Option]) -> str:
    """Options as a Markdown table."""
    rows = ["| option | expects | default | |", "| --- | --- | --- | --- |"]
    for option in options:
        default = option.default
        if option.required:
            shown = "required"
        elif isinstance(default, bool):
            shown = str(default).lower()
        elif isinstance(default, tuple):
            shown = ", ".join(map(str, default))
        else:
            shown = "" if default is None else str(default)
        cells = (f"`{option.name}`", option.expects, shown, option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else "No options.\n"


def main() -> int:
    """Write or check the page."""
    text = reference()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
