"""Valid models to damage, and the judge of what pruning the damaged ones leads to.

Shared by test_fuzz and benchmarks/fuzz.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper

import onnxprune
from helpers.attention_networks import embed, self_attention, token_classifier
from helpers.mutations import MUTATIONS, Random
from helpers.networks import BLOCKS, HEADS, Map, Net
from helpers.oracle import Arrays, zeroed_by_contract
from helpers.oracle import outputs as run
from helpers.paths import MODELS
from onnxprune.verification.comparison import largest_difference

Subject = Callable[[Random], onnx.ModelProto]

REFUSED = "refused"
PRUNED = "pruned"


def shipped(rng: Random) -> onnx.ModelProto:
    """One of the models in models/."""
    paths = sorted(MODELS.glob("*.onnx"))
    return onnx.load(paths[rng.integers(len(paths))])


def convolutional(rng: Random) -> onnx.ModelProto:
    net = Net(lambda options: options[rng.integers(len(options))], int(rng.integers(2**16)))
    source = Map("input", (3, 6, 6))
    x = BLOCKS["conv"](net, source)
    for name in rng.choice(sorted(BLOCKS), int(rng.integers(1, 4))):
        x = BLOCKS[name](net, x)
    return net.model(source, HEADS[rng.integers(len(HEADS))](net, BLOCKS["conv"](net, x)))


def attentive(rng: Random) -> onnx.ModelProto:
    net = Net(lambda options: options[rng.integers(len(options))], int(rng.integers(2**16)))
    source = Map("input", (5, 6))
    return net.model(source, token_classifier(net, self_attention(net, embed(net, source))))


SUBJECTS: tuple[Subject, ...] = (shipped, convolutional, attentive)


def damage_bytes(data: bytes, rng: Random) -> bytes:
    """Truncate, or flip, insert or remove some bytes."""
    kind = rng.random()
    if kind < 0.2:
        return data[: int(rng.integers(len(data)))]
    damaged = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 5, 50]))):
        # most bytes are weights, where a flip only changes a value
        where = int(rng.integers(len(damaged))) if rng.random() < 0.5 else int(rng.integers(2000))
        where = min(where, len(damaged) - 1)
        if kind < 0.8:
            damaged[where] ^= 1 << int(rng.integers(8))
        elif kind < 0.9:
            damaged.insert(where, int(rng.integers(256)))
        else:
            del damaged[where]
    return bytes(damaged)


def mutated(seed: int) -> tuple[str, bytes]:
    """Damage a valid model: what was done, and the bytes of the file."""
    rng = np.random.default_rng(seed)
    subject = SUBJECTS[rng.integers(len(SUBJECTS))]
    model, done = subject(rng), [subject.__name__]
    if rng.random() < 0.15:
        return f"{done[0]}, damage_bytes", damage_bytes(model.SerializeToString(), rng)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        done.append(mutation.__name__)
        mutation(model, rng)
    return ", ".join(done), model.SerializeToString()


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
    divisors = {n.input[1] for n in all_nodes(original) if n.op_type in ("Div", "Mod", "Pow")}
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


def all_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes of the graph, of functions in the place of their calls, and of subgraphs."""
    nodes = list(onnx.inliner.inline_local_functions(model).graph.node)
    for node in nodes:
        nodes.extend(inner for attribute in node.attribute for inner in attribute.g.node)
    return nodes


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
