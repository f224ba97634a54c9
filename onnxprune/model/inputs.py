"""What a model wants to be fed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import InputError

_OPEN = ("", "?")

LISTED_BEFORE = 4
"""IR version from which on an initializer need not be an input as well."""


@dataclass(frozen=True)
class InputSpec:
    """One true input of a graph (an initializer with a default value is none).

    Attributes:
        name: the tensor's name.
        dtype: element type (ml_dtypes for bfloat16 and the like, object for strings); None when
            the input is no tensor (a sequence, optional or map) or declares no type.
        shape: per axis a size, a symbol, or None for unknown; None when even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Describe the inputs a caller has to feed, in graph order."""
    return tuple(
        _spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers
    )


def part_version(model: ir.Model) -> int:
    """IR version for a part of a model, whose inputs are none but the values it reads."""
    return max(model.ir_version, LISTED_BEFORE)


def overridable(model: ir.Model) -> dict[str, ir.Value]:
    """Initializers that a caller may give another value: those that are inputs as well, by name.

    Up to IR version 3 every initializer has to be listed among the inputs, and onnxruntime takes
    them as constants.
    """
    if model.ir_version < LISTED_BEFORE:
        return {}
    return listed_initializers(model)


def listed_initializers(model: ir.Model) -> dict[str, ir.Value]:
    """Initializers of the main graph that are inputs as well, by name."""
    values = model.graph.initializers.items()
    return {name: value for name, value in values if value.is_graph_input()}


def without_listed(model: ir.Model) -> ir.Model:
    """A copy in which no initializer is an input, for tools that take inputs for data."""
    copy = model.clone()
    listed = set(listed_initializers(copy).values())
    true = [value for value in copy.graph.inputs if value not in listed]
    copy.graph.inputs.clear()
    copy.graph.inputs.extend(true)
    copy.ir_version = part_version(model)
    return copy


def list_as_in(model: ir.Model, result: ir.Model) -> None:
    """Make initializers inputs again that are still there after `without_listed`.

    Args:
        model: says which.
        result: made of its copy; changed in place.
    """
    known = result.graph.initializers
    result.graph.inputs.extend(known[name] for name in listed_initializers(model) if name in known)
    if model.ir_version < LISTED_BEFORE:
        result.ir_version = model.ir_version
        list_initializers(result)


def list_initializers(model: ir.Model) -> None:
    """Make what was added to a model follow its IR version; nothing to do from version 4 on.

    Before that initializers are inputs as well, and bodies, whose inputs are given, have none:
    theirs become Constant nodes.

    Args:
        model: changed in place.
    """
    if model.ir_version >= LISTED_BEFORE:
        return
    unlisted = [v for v in model.graph.initializers.values() if not v.is_graph_input()]
    model.graph.inputs.extend(unlisted)
    for body in model.graph.subgraphs():
        for name, value in list(body.initializers.items()):
            if value.is_graph_input() or value.const_value is None:
                continue
            attribute = ir.AttrTensor("value", value.const_value)
            node = ir.Node("", "Constant", [], [attribute], num_outputs=1)
            constant = node.outputs[0]
            constant.type, constant.shape = value.type, value.shape
            value.replace_all_uses_with(constant, replace_graph_outputs=True)
            del body.initializers[name]
            constant.name = name
            first = next(iter(body), None)
            if first is None:
                body.append(node)
            else:
                body.insert_before(first, node)


def _spec(value: ir.Value) -> InputSpec:
    name = value.name or ""
    if not isinstance(value.type, ir.TensorType):
        return InputSpec(name, None, None)
    dtype = np.dtype(object) if value.dtype == ir.DataType.STRING else value.type.dtype.numpy()
    if value.shape is None:
        return InputSpec(name, dtype, None)
    return InputSpec(name, dtype, tuple(_extent(dim) for dim in value.shape))


def _extent(dim: int | ir.SymbolicDim) -> int | str | None:
    """Size or symbol; exporters also write -1 and "?" for what is open."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value not in _OPEN else None


FIRST_BATCH = 2
"""Rows of the first traced batch; the second has one more. Extent 1 would hide broadcasting."""

_MOST_ELEMENTS = 2**29  # of one random input: 2 GiB of float32
_TYPICAL_SIZES = (7, 8, 16, 32, 64, 224, 2, 1)  # tried for open axes other than the batch


def size_choices(specs: Sequence[InputSpec]) -> Iterator[dict[tuple[str, int], int]]:
    """Propose sizes for all dynamic axes, the most telling first.

    Yields:
        a size for every (input name, axis) that is dynamic. Axes with the same symbol agree, and
        those that hold the batch; see `batch_axes`.
    """
    dynamic = list(_dynamic(specs))
    guesses = [batch_axes(specs)]
    # the only open axis of an input may be something else after all
    surer = {
        (name, axis) for name, axis, extent in dynamic if axis == 0 or extent is not None
    } & guesses[0]
    if surer != guesses[0]:
        guesses.append(surer)
    for batch in guesses:
        others = sorted({str(e) for name, axis, e in dynamic if (name, axis) not in batch})
        for size in _TYPICAL_SIZES if others else (0,):
            spread = dict.fromkeys(others, size)
            yield {
                (name, axis): FIRST_BATCH if (name, axis) in batch else spread[str(extent)]
                for name, axis, extent in dynamic
            }


def batch_axes(specs: Sequence[InputSpec]) -> set[tuple[str, int]]:
    """Input name and axis of every dynamic axis that holds the batch.

    That is the first one, any other of the same symbol, and beside inputs whose first axis is open
    without a name the only open axis of an input.
    """
    dynamic = list(_dynamic(specs))
    symbols = {extent for _, axis, extent in dynamic if axis == 0 and isinstance(extent, str)}
    unnamed = any(axis == 0 and extent is None for _, axis, extent in dynamic)
    counts = Counter(name for name, _, _ in dynamic)
    return {
        (name, axis)
        for name, axis, extent in dynamic
        if axis == 0 or extent in symbols or (unnamed and extent is None and counts[name] == 1)
    }


def _dynamic(specs: Sequence[InputSpec]) -> Iterator[tuple[str, int, int | str | None]]:
    """Input name, axis and declared extent of every dynamic axis."""
    for spec in specs:
        for axis, extent in enumerate(spec.shape or ()):
            if not isinstance(extent, int) or extent <= 0:
                yield spec.name, axis, extent


def random_feed(
    specs: Sequence[InputSpec],
    sizes: Mapping[tuple[str, int], int],
    rng: np.random.Generator,
    highest_integer: int = 2,
) -> dict[str, NDArray[Any]]:
    """Return a feed with normally distributed floats, small integers, and True for booleans.

    Args:
        specs: the model's inputs.
        sizes: extents of the dynamic axes.
        rng: source of the values.
        highest_integer: integers lie below it (safe as indices into a table of that size).

    Raises:
        InputError: for inputs that cannot be generated (sequences, strings, unknown rank, size).
    """
    feed: dict[str, NDArray[Any]] = {}
    for spec in specs:
        if spec.dtype is None or spec.shape is None or spec.dtype.kind in "OUS":
            raise InputError(
                f"input {spec.name!r} is no numeric tensor of known rank; give --calibration"
            )
        shape = tuple(
            sizes.get((spec.name, axis), extent if isinstance(extent, int) else FIRST_BATCH)
            for axis, extent in enumerate(spec.shape)
        )
        if math.prod(shape) > _MOST_ELEMENTS:
            raise InputError(
                f"input {spec.name!r} of shape {list(shape)} is too large to be generated; "
                "give --calibration"
            )
        if spec.dtype.kind in "iu":
            feed[spec.name] = rng.integers(0, highest_integer, shape).astype(spec.dtype)
        elif spec.dtype.kind == "b":
            feed[spec.name] = np.ones(shape, spec.dtype)
        else:
            feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feed


def larger_sizes(
    specs: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]]
) -> Iterator[dict[tuple[str, int], int]]:
    """Propose other sizes for the dynamic axes of a feed.

    Yields:
        one more row with every other dynamic axis doubled, then one more row alone. Nothing for a
        model without dynamic axes.
    """
    first = next(size_choices(specs), {})
    batch = batch_axes(specs)
    now = {(name, axis): feed[name].shape[axis] for name, axis in first}
    for factor in (2, 1) if batch != now.keys() else (1,):
        if now:
            yield {key: n + 1 if key in batch else n * factor for key, n in now.items()}


def check_batch(specs: Sequence[InputSpec], rows: int | None) -> None:
    """Make sure that a model takes batches of a number of rows.

    Raises:
        InputError: where it fixes another number.
    """
    if rows is None or batch_axes(specs):
        return
    fixed = next((spec.shape[0] for spec in specs if spec.shape), None)
    if fixed != rows:
        raise InputError(
            f"batch {rows}: the model takes batches of {fixed} only; leave --batch out, or export "
            "it with a dynamic first axis"
        )


def resized_batch(
    specs: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]], rows: int | None
) -> Mapping[str, NDArray[Any]]:
    """A feed with another number of rows, its own ones over and over.

    Args:
        specs: the model's inputs.
        feed: what it runs on.
        rows: None to leave the feed as it is.
    """
    if rows is None:
        return feed
    resized = dict(feed)
    for name, axis in batch_axes(specs):
        if name in resized and resized[name].shape[axis]:
            index = np.arange(rows) % resized[name].shape[axis]
            resized[name] = resized[name].take(index, axis=axis)
    return resized
