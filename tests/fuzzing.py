"""Prune a possibly broken file and judge what happens: shared by test_fuzz and the benchmark."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper
from oracle import Arrays, zeroed_by_contract
from oracle import outputs as run

import onnxprune
from onnxprune.verification.difference import largest_difference

REFUSED = "refused"
PRUNED = "pruned"


class WrongOutcomeError(AssertionError):
    """Pruning ended otherwise than with a valid model or an error of onnxprune."""


def judge(data: bytes, folder: Path) -> str:
    """Prune the file with these bytes at channels=0.5.

    Returns:
        `pruned`, or `refused` with the class of the error.

    Raises:
        WrongOutcomeError: for a result that is wrong or invalid. Any other exception is a bug too.
    """
    path, out = folder / "model.onnx", folder / "pruned.onnx"
    path.write_bytes(data)
    (folder / "data.bin").write_bytes(bytes(100_000))
    (folder / "short.bin").write_bytes(bytes(6))
    out.unlink(missing_ok=True)
    try:
        result = onnxprune.prune(path, target={"channels": 0.5}, threads=1, measure_latency=False)
        result.save(out)
    except onnxprune.OnnxPruneError as error:
        if len(str(error).splitlines()) != 1:
            raise WrongOutcomeError(f"a message of several lines: {error}") from error
        if out.exists():
            raise WrongOutcomeError(f"a file in spite of {error}") from error
        return f"{REFUSED} {type(error).__name__}"
    if not result.report.certificate.holds:
        raise WrongOutcomeError(f"certificate {result.report.certificate.error}")
    if not complaint(path) and complaint(out):
        raise WrongOutcomeError(f"onnx.checker: {complaint(out)}")
    check_promise(with_data(path), with_data(out), result)
    return PRUNED


def complaint(path: Path) -> str:
    """What onnx.checker has to say."""
    try:
        onnx.checker.check_model(path)
    except Exception as error:
        return str(error)
    return ""


def with_data(path: Path) -> onnx.ModelProto:
    """Load a model; a data file may hold more than the tensor that names it."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data"):
            size = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
            tensor.raw_data = tensor.raw_data[: math.ceil(size / 8)]
    return model


def check_promise(
    original: onnx.ModelProto, pruned: onnx.ModelProto, result: onnxprune.PruneResult
) -> None:
    """The result computes what the original does with everything that is not kept at zero."""
    divisors = {n.input[1] for n in original.graph.node if n.op_type in ("Div", "Mod", "Pow")}
    names = {tensor.name for tensor in original.graph.initializer}
    names |= {n.output[0] for n in original.graph.node if n.op_type == "Constant"}
    plan = {
        name: {axis: np.array(kept) for axis, kept in axes.items()}
        for name, axes in result.plan.initializers.items()
        if name not in divisors
    }
    # tensors of inlined functions have no name of their own in the file
    if not names.issuperset(plan):
        return
    feed = made_up(original)
    try:
        wanted = run(zeroed_by_contract(original, plan), feed)
    except onnxprune.OnnxPruneError:  # the inputs made up here need not suit it
        return
    with np.errstate(all="ignore"):
        apart = largest_difference(wanted, run(pruned, feed))
    if not apart <= 10 * result.report.certificate.tolerance:
        raise WrongOutcomeError(f"a result that is wrong by {apart}")


def made_up(model: onnx.ModelProto) -> Arrays:
    rng = np.random.default_rng(99)
    given = {tensor.name for tensor in model.graph.initializer}
    feed: dict[str, NDArray[np.generic]] = {}
    for value in model.graph.input:
        if value.name not in given:
            tensor = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [max(dim.dim_value, 0) or 2 for dim in tensor.shape.dim]
            feed[value.name] = np.asarray(rng.standard_normal(shape), dtype)
    return feed
