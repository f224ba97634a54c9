"""One array against the model's input it is meant for: names, dtypes, shapes, finite values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.errors import CalibrationError, first_line
from onnxprune.model.inputs import InputSpec

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = dict[str, Array]

_SINGLE = ((), (1,))  # shapes of one number


def check_names(
    keys: Iterable[object], specs: Sequence[InputSpec], where: str, shared: Collection[str] = ()
) -> None:
    """Require exactly the inputs of the model.

    Args:
        keys: the names there are.
        specs: the inputs of the model.
        where: names the source in messages.
        shared: inputs that are the same for all samples, for messages.

    Raises:
        CalibrationError: naming the first unknown or missing one.
    """
    names = list(keys)
    valid = ", ".join(repr(spec.name) for spec in specs)
    known = {spec.name for spec in specs}
    for name in names:
        if name not in known:
            raise CalibrationError(
                f"{where}: {name!r} is not an input of the model; give exactly {valid}"
            )
    for spec in specs:
        if spec.name not in names:
            remedy = f"give exactly {valid}"
            if spec.name in shared:
                remedy = (
                    "it has one value for all samples: put it beside the others, in a .npz of its "
                    "own in a folder, or into the first of several feeds"
                )
            raise CalibrationError(f"{where}: nothing for the input {spec.name!r}; {remedy}")


def check_dtype(dtype: np.dtype[Any], spec: InputSpec, where: str) -> None:
    """Require a dtype that converts to the input's without changing its kind.

    Raises:
        CalibrationError: for an object array, or another kind (float, integer, bool, string).
    """
    assert spec.dtype is not None
    expected = spec.dtype
    if expected.kind == "O":
        if dtype.kind in "OUST":
            return
    elif dtype.kind == "O":
        raise CalibrationError(
            f"{where}: the input {spec.name!r} got Python objects (rows of unequal length?), "
            f"expected an array of {expected}"
        )
    elif dtype == expected or _kind(dtype) == _kind(expected) != "other":
        return
    raise CalibrationError(
        f"{where}: the input {spec.name!r} got {dtype}, expected {expected}; "
        "prepare the samples exactly as for inference"
    )


def fits(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """Say whether a shape agrees with a declared one wherever that is a number."""
    return len(shape) == len(declared) and all(
        not isinstance(dim, int) or size == dim for size, dim in zip(shape, declared, strict=True)
    )


def is_single(shape: Sequence[int], declared: Sequence[int | str | None] | None) -> bool:
    """Say whether an array is the one number of an input that is a scalar, or an axis of one."""
    return declared is not None and tuple(declared) in _SINGLE and tuple(shape) in _SINGLE


def describe(shape: Sequence[int | str | None]) -> str:
    """Write a declared shape the way ONNX tools do: [N, 3, 224, ?]."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def conform(array: Array, spec: InputSpec, where: str, first: int, axis: int | None) -> Array:
    """Convert an array to the input's dtype and require finite values.

    Args:
        array: of a dtype that passed `check_dtype`.
        spec: the input.
        where: names the source in messages.
        first: number of the first sample in the array, for messages.
        axis: which counts samples; None for no axis.

    Returns:
        A contiguous array of the input's dtype.

    Raises:
        CalibrationError: for NaN, infinity, or a number the input's dtype cannot hold.
    """
    assert spec.dtype is not None
    if spec.shape is not None and is_single(array.shape, spec.shape):
        array = array.reshape([1] * len(spec.shape))
    if spec.dtype.kind == "O":
        return np.ascontiguousarray(array.astype(object)).reshape(array.shape)
    kind = _kind(spec.dtype)
    if kind == "integer" and array.size and not np.can_cast(array.dtype, spec.dtype):
        limits = np.iinfo(spec.dtype)
        _require(
            (array >= limits.min) & (array <= limits.max),
            f"a number outside {spec.dtype}",
            spec,
            where,
            first,
            axis,
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.asarray(array, dtype=spec.dtype, order="C")
    if kind == "float":
        _require(_finite(array), "NaN or infinity", spec, where, first, axis)
        if converted.dtype != array.dtype:
            what = f"a number too large for {spec.dtype}"
            _require(_finite(converted), what, spec, where, first, axis)
    return converted


def check_feed(
    item: object,
    specs: Sequence[InputSpec],
    axes: SampleAxes,
    where: str,
    first: int,
    before: Mapping[str, Array] | None = None,
) -> Feed:
    """Turn one {input: array} of a caller's into a feed, in the order of the specs.

    Args:
        item: whatever an iterable, reader or function gave.
        specs: the inputs of the model.
        axes: where samples lie.
        where: names the source in messages.
        first: number of the first sample in the feed, for messages.
        before: the feed before; what is the same for all samples may be left out then.

    Raises:
        CalibrationError: when it does not fit the model.
    """
    if not isinstance(item, Mapping):
        names = ", ".join(f"{spec.name!r}: array" for spec in specs)
        raise CalibrationError(
            f"{where}: expected a dictionary {{{names}}}, got {type(item).__name__}"
        )
    shared = axes.shared(specs)
    known = {name: array for name, array in (before or {}).items() if name in shared}
    given = {**known, **item}
    check_names(given, specs, where, shared)
    arrays = {spec.name: as_array(given[spec.name], spec, where) for spec in specs}
    for spec in specs:
        shape = arrays[spec.name].shape
        if spec.shape is None or is_single(shape, spec.shape) or fits(shape, spec.shape):
            continue
        raise CalibrationError(
            f"{where}: the input {spec.name!r} got the shape {list(shape)}, "
            f"expected {describe(spec.shape)}"
        )
    counted = axes.axes if axes.rows(arrays) is not None else {}
    return {
        spec.name: conform(arrays[spec.name], spec, where, first, counted.get(spec.name))
        for spec in specs
    }


def as_array(value: object, spec: InputSpec, where: str) -> Array:
    """Turn an array-like into an array of a fitting dtype.

    Raises:
        CalibrationError: when it is none.
    """
    try:
        array = np.asarray(value)
    except Exception as error:
        raise CalibrationError(
            f"{where}: the input {spec.name!r} is no array: {first_line(error)}"
        ) from error
    check_dtype(array.dtype, spec, where)
    return array


def _kind(dtype: np.dtype[Any]) -> str:
    try:
        element = ir.DataType.from_numpy(dtype)
    except TypeError:
        return "other"
    if element.is_floating_point():
        return "float"
    return "integer" if element.is_integer() else "other"


def _finite(array: Array) -> npt.NDArray[np.bool_]:
    native = array if array.dtype.kind == "f" else array.astype(np.float32)
    finite: npt.NDArray[np.bool_] = np.isfinite(native)
    return finite


def _require(
    good: npt.NDArray[np.bool_],
    what: str,
    spec: InputSpec,
    where: str,
    first: int,
    axis: int | None,
) -> None:
    if good.all():
        return
    row = 0
    if axis is not None and good.ndim > axis:
        by_sample = np.moveaxis(good, axis, 0)
        row = int(np.argmin(by_sample.reshape(len(by_sample), -1).all(axis=1)))
    raise CalibrationError(
        f"{where}: the input {spec.name!r} holds {what} in sample {first + row}; "
        "remove or repair that sample"
    )
