"""Calibration samples from arrays, files, folders, functions and iterables."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.array_files import ArrayPart, npy_part, npz_part, npz_parts
from onnxprune.calibration.closed_loop import ClosedLoop
from onnxprune.calibration.feeds import as_array, check_names
from onnxprune.calibration.reader import Reader
from onnxprune.calibration.readers import advice
from onnxprune.calibration.sample_axes import SampleAxes
from onnxprune.calibration.scripts import FUNCTION, load_function, pb_feeds
from onnxprune.calibration.streams import ArraySamples, FeedSamples, Samples, spool
from onnxprune.errors import CalibrationError
from onnxprune.model.inputs import InputSpec, input_specs
from onnxprune.model.runtime import Runtime

_Close: TypeAlias = Callable[[ClosedLoop], Samples]

CalibrationSource: TypeAlias = Any
"""What `read_samples` accepts: too many unrelated forms for a useful static type."""


def read_samples(
    source: CalibrationSource,
    specs: Sequence[InputSpec],
    model: ir.Model | None = None,
    runtime: Runtime | None = None,
) -> Samples:
    """Open calibration samples.

    Args:
        source: a mapping of input name to array (first axis = samples); an array or `.npy` file
            for a model with one input, or a folder of them; a `.npz` file (keys = input names) or
            a folder of them; a folder of ONNX `test_data_set_*/input_*.pb`, or one such set;
            "module.py:function" or a function yielding {input: array}; an iterable of such
            dictionaries; an object with onnxruntime's `CalibrationDataReader.get_next()`. Arrays
            are cut into batches;
            dictionaries are whole feeds. An array with one axis more than the input is a stack
            of whole feeds. A `ClosedLoop`, also as what a function gives, is run on the model;
            `Images`, `Texts` and `Audio` are read as they say.
        specs: the inputs of the model.
        model: the original; needed for a `ClosedLoop`.
        runtime: how to run it.

    Raises:
        CalibrationError: when the source cannot be read or does not fit the model. What can only
            be known while going through the samples is raised by `Samples.batches`.
    """
    if isinstance(source, Samples):
        return source
    specs = tuple(specs)
    if not specs:
        raise CalibrationError("the model has no inputs, so there is nothing to calibrate with")
    for spec in specs:
        if spec.dtype is None:
            raise CalibrationError(
                f"the input {spec.name!r} is not a tensor (a sequence, optional or map); "
                "calibration samples cannot be fed to it"
            )
    if isinstance(source, Reader):
        return source.samples(specs)
    close = partial(_closed, model=model, runtime=runtime)
    if isinstance(source, ClosedLoop):
        return close(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source), specs, close)
    where = "calibration"
    if isinstance(source, np.ndarray):
        return ArraySamples([_in_memory({_only(specs, where): source}, specs, where)], specs)
    if isinstance(source, Mapping):
        return ArraySamples([_in_memory(source, specs, where)], specs)
    if callable(getattr(source, "get_next", None)):
        return _from_reader(source, specs, where)
    if callable(source) and not hasattr(source, "__iter__"):
        return _from_function(source, specs, f"calibration function {_name(source)}", close)
    try:
        iterator = iter(source)
    except TypeError:
        raise CalibrationError(
            "calibration data is a mapping of arrays, an iterable of dictionaries, a path, a "
            f"function or a CalibrationDataReader, not {type(source).__name__}"
        ) from None
    if iterator is source:
        return spool(iterator, specs, where)
    return FeedSamples(lambda: source, specs, where)


def model_samples(source: CalibrationSource, model: ir.Model, runtime: Runtime) -> Samples:
    """Open calibration samples of a model.

    Args:
        source: as for `read_samples`.
        model: the original.
        runtime: how to run it, for a `ClosedLoop`.

    Raises:
        CalibrationError: as `read_samples`.
    """
    return read_samples(source, input_specs(model), model, runtime)


def _closed(loop: ClosedLoop, model: ir.Model | None, runtime: Runtime | None) -> Samples:
    if model is None:
        raise CalibrationError("a closed loop needs the model to run on")
    return loop.samples(model, runtime or Runtime())


def _from_function(
    function: Callable[[], Any], specs: tuple[InputSpec, ...], where: str, close: _Close
) -> Samples:
    """Feeds of a function, which is called once ahead to see whether it gives a reader."""
    try:
        first = function()
    except Exception:  # said where the feeds are read
        return FeedSamples(function, specs, where)
    if isinstance(first, ClosedLoop):
        return close(first)
    if isinstance(first, Reader):
        return first.samples(specs)
    ahead = [first]
    return FeedSamples(lambda: ahead.pop() if ahead else function(), specs, where)


def _from_path(source: str, specs: tuple[InputSpec, ...], close: _Close) -> Samples:
    path = Path(source)
    where = f"calibration {source}"
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        if archives:
            return ArraySamples(npz_parts(archives, specs), specs, folder=True)
        arrays = sorted(path.glob("*.npy"))
        if arrays:
            name = _only(specs, where)
            parts = [npy_part(file, name, specs) for file in arrays]
            return ArraySamples(parts, specs, folder=True)
        sets = pb_feeds(path, specs, where)
        if sets is not None:
            return FeedSamples(sets, specs, where)
        what = (
            advice(path, specs)
            or "holds neither .npz nor .npy files nor test_data_set_*/input_*.pb"
        )
        raise CalibrationError(f"{where}: the folder {what}")
    if path.exists():
        if path.suffix == ".npz":
            folder = tempfile.mkdtemp(prefix="onnxprune-samples-")
            try:
                samples = ArraySamples([npz_part(path, specs, Path(folder))], specs)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            weakref.finalize(samples, shutil.rmtree, folder, ignore_errors=True)
            return samples
        if path.suffix == ".npy":
            return ArraySamples([npy_part(path, _only(specs, where), specs)], specs)
        if what := advice(path, specs):
            raise CalibrationError(f"{where}: {what}")
        remedy = f"; name its function: {source}:function" if path.suffix == ".py" else ""
        raise CalibrationError(
            f"{where}: is neither .npz nor .npy nor a folder nor module.py:function{remedy}"
        )
    if FUNCTION.fullmatch(source):
        return _from_function(load_function(source), specs, where, close)
    raise CalibrationError(f"{where}: no such file or folder")


def _from_reader(reader: Any, specs: tuple[InputSpec, ...], where: str) -> Samples:
    def feeds() -> Iterator[object]:
        return iter(reader.get_next, None)

    if not callable(getattr(reader, "rewind", None)):
        return spool(feeds(), specs, where)

    def again() -> Iterator[object]:
        reader.rewind()
        return feeds()

    return FeedSamples(again, specs, where)


def _in_memory(source: Mapping[str, object], specs: tuple[InputSpec, ...], where: str) -> ArrayPart:
    check_names(source, specs, where, SampleAxes.of(specs).shared(specs))
    return ArrayPart.of(
        {spec.name: as_array(source[spec.name], spec, where) for spec in specs}, where
    )


def _only(specs: Sequence[InputSpec], where: str) -> str:
    if len(specs) > 1:
        names = ", ".join(repr(spec.name) for spec in specs)
        raise CalibrationError(
            f"{where}: a single array, but the model has the inputs {names}; "
            "use a .npz file or a mapping with these names"
        )
    return specs[0].name


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
