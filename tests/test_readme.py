"""The examples of the documents run as they stand.

Blocks marked `bash` and `python` are run from a folder that has the repository's models and some of
their samples; blocks marked otherwise are not. All are run in this process, but for commands of a
shell that do more than call onnxprune.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from helpers.paths import ROOT
from helpers.rules import Case, check

import onnxprune
from onnxprune.cli import main
from onnxprune.cost.latency.measure import measure_pair
from onnxprune.coupling.operators import elementwise
from onnxprune.importance import registry
from onnxprune.options import FINETUNE_OPTIONS
from onnxprune.pruning import results


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# docs/reference.md is made of docstrings: its blocks are signatures.
PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "reference.md")
DOCUMENTS = ("README.md", *(f"docs/{name}" for name in PAGES))


def all_blocks(language):
    """The blocks of a language, each named by its document and number."""
    return [
        pytest.param(block, id=f"{document}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document, language), 1)
    ]


SAMPLES = 64
"""Of the 512 there are for each model: what an example does is the same with them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder models/ with fewer samples to calibrate on."""
    folder = tmp_path_factory.mktemp("documents") / "models"
    shutil.copytree(ROOT / "models", folder, ignore=shutil.ignore_patterns("*.py"))
    for path in folder.glob("*_calibration.npz"):
        with np.load(path) as file:
            arrays = {name: file[name][:SAMPLES] for name in file.files}
        np.savez(path, **arrays)
    return folder


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    """A working folder with models/, and a bin/ whose commands use the running interpreter."""
    monkeypatch.setattr(results, "measure_pair", functools.partial(measure_pair, seconds=0.0))
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("onnxprune", "-m onnxprune"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    return tmp_path


def commands(block):
    """The commands of a block, one after another; the block as it is where one has several lines.

    Returns:
        the words after `onnxprune` where a command is nothing but a call of it, else its text.
    """
    if "<<" in block:
        return [block]
    lines = block.replace("\\\n", " ").strip().splitlines()
    return [
        shlex.split(line)[1:]
        if line.startswith("onnxprune ") and not re.search(r"[<>|&;$`#]", line)
        else line
        for line in lines
    ]


def test_commands_of_a_block():
    block = "onnxprune inspect a.onnx \\\n    --svg 'b c.svg'\nonnxprune passes > file\ncmp a b\n"
    assert commands(block) == [
        ["inspect", "a.onnx", "--svg", "b c.svg"],
        "onnxprune passes > file",
        "cmp a b",
    ]
    assert commands("cat > a <<'END'\nb\nEND\n") == ["cat > a <<'END'\nb\nEND\n"]


def run_in_shell(folder, block):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands(folder, block, capfd):
    for command in commands(block):
        if isinstance(command, str):
            run_in_shell(folder, command)
        else:
            assert main(command) == 0, capfd.readouterr().err
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("block", all_blocks("python"))
def test_python(block, capfd):
    # as a file of its own: the examples must not see the names of this one
    exec(compile(block, "example.py", "exec"), {"__name__": "__main__"})
    output = capfd.readouterr()
    assert output.err == ""
    assert output.out


@pytest.mark.parametrize(
    ("document", "languages"),
    [
        ("README.md", ("bash", "python")),
        ("docs/concepts.md", ("python",)),
        ("docs/guide.md", ("bash", "python")),
        ("docs/howto.md", ("bash", "python")),
        ("docs/passes.md", ("bash", "python")),
    ],
)
def test_documents_have_examples(document, languages):
    for language in languages:
        assert blocks(document, language)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_option_of_prune_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out.partition("positional")[0]))
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    declared = {
        f"--{name.replace('_', '-')}" for name in re.findall(r"^\| `(\w+)`", reference, re.M)
    }
    positive = {flag for flag in flags if flag.replace("--", "--no-") in flags}
    assert flags - positive - declared <= set(re.findall(r"--[a-z][a-z-]+", page))


def test_every_option_of_finetune_is_explained():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = page.partition("\n## Fine-tuning\n")[2].partition("\n## ")[0]
    for option in FINETUNE_OPTIONS:
        assert f"--{option.name}" in section


def headings(document):
    """The anchors of a page, as GitHub and MkDocs both write them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/reference.md", *DOCUMENTS])
def test_links_lead_somewhere(document):
    page = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        home = (page.parent / path) if path else page
        assert home.is_file(), target
        assert not anchor or anchor in headings(home), target


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md", "docs/mechanisms.md"])
def test_paths_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    roots = (ROOT, ROOT / "onnxprune", *filter(Path.is_dir, (ROOT / "onnxprune").iterdir()))
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        if not re.search("[A-Z]{4}", path):
            installed = path.removeprefix("onnxprune/") if "onnxprune/passes" in path else path
            assert any((root / installed).exists() for root in roots), path


def contributed(text, language="python"):
    """The worked example of CONTRIBUTING.md that has this text."""
    return next(block for block in blocks("CONTRIBUTING.md", language) if text in block)


def test_operator_example():
    rule, source = contributed("def _where", "py"), inspect.getsource(elementwise)
    code = [line for line in rule.splitlines() if line.startswith(("def", "    "))]
    statements = [line for line in code if not line.strip().startswith("#")]
    assert "\n".join(statements) in source
    names = {"Case": Case, "check": check}
    exec(compile(contributed("def test_where", "py"), "CONTRIBUTING.md", "exec"), names)
    names["test_where"]()


def test_criterion_example(monkeypatch):
    source = contributed("class Smallest")
    names: dict[str, type] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)

    class Installed(EntryPoint):
        def load(self):
            return names["Smallest"]

    def entry_points(**_selection):
        return EntryPoints([Installed("smallest", "package:Smallest", "onnxprune.criteria")])

    monkeypatch.setattr(registry, "entry_points", entry_points)
    result = onnxprune.prune(
        ROOT / "models" / "digits_mlp.onnx", criterion="smallest", measure_latency=False
    )
    assert result.plan.options["criterion"] == "smallest"


def test_pass_example():
    source = contributed("class NameNodes")
    names: dict[str, type] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    model = ir.load(ROOT / "models" / "digits_resnet.onnx")
    model.graph[0].name = None
    assert ir.passes.Sequential(names["NameNodes"]())(model).modified
    assert np.all([node.name for node in model.graph])
