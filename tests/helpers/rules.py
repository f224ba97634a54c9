"""A tiny graph around one op, and what the tracer has to find in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from helpers.oracle import (
    BATCHES,
    TOLERANCE,
    Traced,
    check_surgery,
    feed,
    outputs,
    parse,
    random_removal,
    traced,
)
from helpers.versions import listed
from onnxprune.coupling.groups import find_refusals
from onnxprune.errors import RuntimeFailure

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One graph and its specification.

    Attributes:
        op: the op it is about, with its domain in front unless it is the default one.
        body: nodes in ONNX text, from `x` to `y`.
        weights: shapes of the float initializers.
        groups: "size: owned axes" of every group, as `size: tensor[axis] ...`.
        refused: words of some refusal; empty when nothing may be refused.
        x: declared shape of the input.
        y: declared shape of the output.
        opset: version of the default domain.
        values: further initializers, given whole, as arrays or as tensors of rarer types.
        inputs: further graph inputs, as `, float[N, 4] z`.
        kind: of every group; not looked at when empty.
        held: what zero is in a quantised constant, where it is not the number 0.
        tolerance: largest difference allowed between masked and sliced model.
    """

    op: str
    body: str
    weights: Mapping[str, Shape]
    groups: tuple[str, ...] = ()
    refused: str = ""
    x: str = "N, 4"
    y: str = "N, 3"
    opset: int = 17
    values: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""
    kind: str = ""
    held: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def proto(self) -> onnx.ModelProto:
        rng = np.random.default_rng(7)
        weights = {
            name: (rng.standard_normal(shape) / np.sqrt(max(shape[-1:] or (1,)))).astype("float32")
            for name, shape in self.weights.items()
        }
        given = {
            name: value if isinstance(value, onnx.TensorProto) else np.asarray(value)
            for name, value in self.values.items()
        }
        fused = "com.microsoft" in self.op + self.body
        imports = f'"": {self.opset}' + (', "com.microsoft": 1' if fused else "")
        text = (
            f"<ir_version: 8, opset_import: [{imports}]> "
            f"net (float[{self.x}] x{self.inputs}) => (float[{self.y}] y) {{ {self.body} }}"
        )
        return parse(text, weights | given)

    def traced(self) -> Traced:
        return traced(self.proto())

    def __str__(self) -> str:
        return self.op


def runnable(cases: Iterable[Case]) -> list[Case]:
    """The cases that the installed onnxruntime can run; old ones lack a kernel or two."""
    return [case for case in cases if _runs(case.proto())]


def _runs(proto: onnx.ModelProto) -> bool:
    try:
        outputs(proto, feed(proto, BATCHES[0]))
    except RuntimeFailure:
        return False
    return True


def owned_axes(subject: Traced) -> tuple[str, ...]:
    """Size and owned axes of every group, sorted, `4: a[1] b[0]`."""
    return tuple(
        sorted(
            f"{group.size}: "
            + " ".join(sorted({f"{o.tensor}{list(o.axes)}".replace(" ", "") for o in group.owned}))
            for group in subject.groups
        )
    )


def check(case: Case) -> None:
    """The groups are exactly those specified, the refusal is explained, and cutting is sound."""
    subject = case.traced()
    assert owned_axes(subject) == tuple(sorted(case.groups))
    assert not case.kind or {group.kind for group in subject.groups} == {case.kind}
    reasons = [one.reason for one in find_refusals(subject.coupling)]
    inner = [text for text in reasons if "interface" not in text]
    if case.refused:
        assert any(case.refused in text for text in inner), inner
    else:
        assert not inner
    moved = []
    for seed in range(3 if case.groups else 0):
        dead = random_removal(subject, 0.5, seed)
        assert dead
        moved.append(check_surgery(subject, dead, case.held, case.tolerance))
    assert not case.groups or max(moved) > 0
    # a file of IR version 3 lists its weights among the inputs
    assert owned_axes(traced(listed(case.proto()))) == owned_axes(subject)
