"""The examples of the documents run as they stand.

Blocks marked `bash` and `python` are run from a folder that has the repository's models; blocks
marked otherwise are not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import onnx_ir as ir
import pytest
from helpers.paths import ROOT

import onnxprune
from onnxprune.importance import criterion


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


DOCUMENTS = ("README.md", "docs/concepts.md", "docs/howto.md", "docs/design.md")


def all_blocks(language):
    """The blocks of a language, each named by its document and number."""
    return [
        pytest.param(block, id=f"{document}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document, language), 1)
    ]


@pytest.fixture
def folder(tmp_path):
    """A working folder with models/, and a bin/ whose commands use the running interpreter."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("onnxprune", "-m onnxprune"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands(folder, block):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python(folder, block):
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if "design" not in one])
def test_documents_have_examples(document):
    assert blocks(document, "bash") or document.endswith("concepts.md")
    assert blocks(document, "python")


def test_criterion_example(monkeypatch):
    source = next(one for one in blocks("CONTRIBUTING.md", "python") if "class Smallest" in one)
    names: dict[str, type] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)

    class Found(EntryPoint):
        def load(self):
            return names["Smallest"]

    def installed(**_selection):
        return EntryPoints([Found("smallest", "package:Smallest", "onnxprune.criteria")])

    monkeypatch.setattr(criterion, "entry_points", installed)
    result = onnxprune.prune(
        ROOT / "models" / "digits_mlp.onnx", criterion="smallest", measure_latency=False
    )
    assert result.plan.options["criterion"] == "smallest"


def test_pass_example():
    source = next(one for one in blocks("CONTRIBUTING.md", "python") if "class NameNodes" in one)
    names: dict[str, type] = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    model = ir.load(ROOT / "models" / "digits_resnet.onnx")
    model.graph[0].name = None
    assert ir.passes.Sequential(names["NameNodes"]())(model).modified
    assert np.all([node.name for node in model.graph])
