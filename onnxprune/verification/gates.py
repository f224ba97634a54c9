"""What every result has to pass besides the certificate: interface, checker, a real run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from onnxprune.errors import RuntimeFailure, VerificationError
from onnxprune.model.protobuf import to_proto
from onnxprune.model.runtime import open_session, run
from onnxprune.model.tensors import INLINE_LIMIT, external_initializers, inline_bytes
from onnxprune.verification.difference import largest_difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxprune.model.protobuf import to_proto
from onnxprune.model.runtime import Runtime

__all__ = ["check_interface", "check_result"]


def check_result(
    original: ir.Model,
    result: ir.Model,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
    tolerance: float,
) -> None:
    """Check a result before it is handed out.

    Raises:
        VerificationError: when its interface differs, `onnx.checker` refuses it although it
            accepted the original, or onnxruntime with its usual optimisations cannot run it or
            computes something else with them.
    """
    check_interface(original, result)
    complaint = _checker_complaint(result)
    if complaint and not _checker_complaint(original):
        raise VerificationError(f"onnx.checker refuses the result: {complaint}")
    try:
        optimised = open_session(result, runtime)
        plain = open_session(result, runtime, optimise=False)
        apart = max(largest_difference(run(plain, feed), run(optimised, feed)) for feed in feeds)
    except RuntimeFailure as error:
        raise VerificationError(f"the result does not run: {error}") from error
    if apart > 10 * tolerance:
        raise VerificationError(
            f"onnxruntime's optimisations change the result by {apart:.1e} (relative)"
        )


def check_interface(original: ir.Model, result: ir.Model) -> None:
    """Require the same inputs and outputs: names, order, types, declared shapes.

    Raises:
        VerificationError: naming the first that differs.
    """
    kept = original.graph.initializers
    pairs = [
        (
            "input",
            [v for v in original.graph.inputs if v.name not in kept],
            [v for v in result.graph.inputs if v.name not in result.graph.initializers],
        ),
        ("output", list(original.graph.outputs), list(result.graph.outputs)),
    ]
    for kind, before, after in pairs:
        if [_described(value) for value in before] != [_described(value) for value in after]:
            raise VerificationError(f"the result's {kind}s differ from the original's")


def _described(value: ir.Value) -> tuple[str | None, str, str]:
    return value.name, str(value.type), str(value.shape)


def _checker_complaint(model: ir.Model) -> str:
    if external_initializers(model) or inline_bytes(model) > INLINE_LIMIT:
        return ""
    try:
        onnx.checker.check_model(to_proto(model))
    except Exception as error:  # the checker raises several unrelated types
        return str(error).splitlines()[0]
    return ""
