"""How the tests solve layers anew: trace, solve, mask, slice and compare, from the plain parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from helpers.oracle import ONE_THREAD, Traced, difference, outputs, parse, traced
from onnxprune.calibration.context import RunContext
from onnxprune.compensation.least_squares import LeastSquares, OpenChoice, Refit, Settings
from onnxprune.coupling.cut import Cut
from onnxprune.model.runtime import matrix_threads
from onnxprune.surgery.editable_model import EditableModel
from onnxprune.surgery.slicing import slice_removed, zero_removed

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
EXACT = Settings(ridges=(1e-7,), last_ridges=(1e-7,))
"""So weak a ridge that what can be restored exactly is."""
CONTEXT = RunContext(runtime=ONE_THREAD)

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Solved:
    """A model after the pass."""

    subject: Traced
    full: EditableModel
    refit: Refit
    removed: Sequence[int]
    sliced: onnx.ModelProto

    def weight(self, name: str) -> NDArray[Any]:
        """A constant at full size, under its old name."""
        return self.full.coupling.facts.constants[name].numpy()

    def repaired(self) -> set[str]:
        return self.refit.solved


def batches(samples: Feed, size: int = 16) -> list[Feed]:
    count = len(next(iter(samples.values())))
    return [
        {key: array[start : start + size] for key, array in samples.items()}
        for start in range(0, count, size)
    ]


def solve(
    proto: onnx.ModelProto,
    dead: Sequence[int],
    feeds: Sequence[Feed],
    chosen_settings: Settings | None = None,
    choices: Sequence[OpenChoice] = (),
    tolerance: float = 1e-4,
) -> Solved:
    """Solve and slice; what is sliced has to compute what is masked, and the pass what both do."""
    subject = traced(proto)
    full = EditableModel(subject.model.clone(), subject.coupling)
    fitting = LeastSquares(full, subject.model, feeds, CONTEXT, chosen_settings)
    with matrix_threads(1):
        refit = fitting.fit(dead, choices)
    removed = [*dead, *(unit for units in refit.chosen.values() for unit in units)]
    cut = Cut(full.coupling, removed)
    masked, sliced = full.model.clone(), full.model.clone()
    zero_removed(masked, cut)
    slice_removed(sliced, cut)
    result, wanted = ir.to_proto(sliced), ir.to_proto(masked)
    onnx.checker.check_model(result, full_check=True)
    for feed, (first, second) in zip(feeds, refit.outputs, strict=True):
        assert difference(outputs(wanted, feed), outputs(result, feed)) < tolerance
        assert difference(outputs(proto, feed), first) < tolerance
        if not choices:
            assert difference(outputs(wanted, feed), second) < tolerance
    return Solved(subject, full, refit, removed, result)


def classes_of(proto: onnx.ModelProto, weight: str, axis: int, units: Sequence[int]) -> list[int]:
    subject = traced(proto)
    classes = subject.units(weight, axis)
    return subject.closed([int(classes[unit]) for unit in units])


def floats(seed: int, **shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)
        for name, shape in shapes.items()
    }


def images(count: int, *shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def masked_only(found: Solved, name: str, axis: int, units: Sequence[int]) -> None:
    """A constant is as it was but for zeros in what is removed."""
    wanted = found.subject.coupling.facts.constants[name].numpy().copy()
    np.moveaxis(wanted, axis, 0)[list(units)] = 0
    np.testing.assert_array_equal(found.weight(name), wanted)


MLP = f"""{HEAD} g (float[N, 8] x) => (float[N, 4] y)
    {{ a = Gemm(x, w1, b1)  h = Relu(a)  b = Gemm(h, w2, b2)  k = Relu(b)  y = Gemm(k, w3, b3) }}"""


def mlp() -> onnx.ModelProto:
    sizes = {"w1": (8, 12), "b1": (12,), "w2": (12, 12), "b2": (12,), "w3": (12, 4), "b3": (4,)}
    return parse(MLP, floats(0, **sizes))
