"""Prune one graph with onnxsim; runs in onnxsim's environment, one process for each graph.

    python prune_with_onnxsim.py INPUT OUTPUT RATIO [--simplify]

Prints one line of JSON: the seconds taken, imports and files left out.
"""

from __future__ import annotations

import json
import sys
import time

import onnx
import onnxsim


def main() -> None:
    """Do as the command line says; any exception is the caller's to report."""
    source, target, ratio, *flags = sys.argv[1:]
    model = onnx.load(source)
    started = time.perf_counter()
    if "--simplify" in flags:
        model, _ = onnxsim.simplify(model)
    model = onnxsim.apply_structured_pruning(model, sparsity=float(ratio))
    model = onnxsim.apply_attention_head_pruning(model, sparsity=float(ratio))
    seconds = time.perf_counter() - started
    onnx.save(model, target)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
