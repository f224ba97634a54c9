"""Prune two small trained models with unlabelled samples, and judge the result on labelled ones.

Writes into out/. Run it with `make demo`, or `python examples/demo.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

import onnxprune
from onnxprune.report.text import TextReport, make_console

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
OUT = ROOT / "out"

# One thread: the models are so small that handing work to a second one takes longer than doing it.
THREADS = 1


def accuracy(model: Path, samples: dict[str, np.ndarray]) -> float:
    """Return the fraction of test samples whose largest logit is that of the label."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    (logits,) = session.run(None, {name: samples[name]})
    return float((logits.argmax(axis=1) == samples["labels"]).mean())


def demonstrate(model: str, data: str, options: str, **arguments: object) -> None:
    """Prune a model of models/ and print what it cost."""
    source, calibration = MODELS / f"{model}.onnx", MODELS / f"{data}_calibration.npz"
    result = onnxprune.prune(source, calibration=calibration, threads=THREADS, **arguments)
    small = OUT / f"{model}_small.onnx"
    result.save(small)

    with np.load(MODELS / f"{data}_test.npz") as file:
        samples = dict(file)
    console = make_console()
    console.rule(f"{model}.onnx")
    print("On the command line:\n")
    print(f"    onnxprune prune models/{source.name} out/{small.name} \\")
    print(f"        --calibration models/{calibration.name} \\")
    print(f"        {options} --threads {THREADS}\n")
    TextReport(console).pruned(f"models/{source.name} -> out/{small.name}", result.report)
    print(
        f"\naccuracy on {len(samples['labels'])} test samples: "
        f"{accuracy(source, samples):.1%} before, {accuracy(small, samples):.1%} after\n"
    )


def main() -> None:
    """Run both demonstrations."""
    OUT.mkdir(exist_ok=True)
    demonstrate("spirals_mlp", "spirals", "--target channels=0.5", target={"channels": 0.5})
    demonstrate(
        "digits_transformer", "digits_transformer", "--target macs=0.5", target={"macs": 0.5}
    )


if __name__ == "__main__":
    main()
