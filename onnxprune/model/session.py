"""onnxruntime sessions over onnx-ir models: silent, without copies of external weights."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import RuntimeFailure
from onnxprune.model.protobuf import serialise, to_proto
from onnxprune.model.runtime import Runtime
from onnxprune.model.save import save
from onnxprune.model.tensors import external_initializers, inline_bytes

_FATAL = 4
# Error codes, and places in the source code of onnxruntime.
_NOISE = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |"
    r"\S*onnxruntime_src\S+ .*?\)>?(?: const)?(?: \[with .*?\])? (?=[A-Z]|\w+ [=!<>]{1,2} )"
)
_INLINE_BYTES = 64_000_000
_NO_PREPACKING = "session.disable_prepacking"
_NO_SPINNING_ON = "session.force_spinning_stop"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    model: ir.Model | onnx.ModelProto,
    runtime: Runtime,
    *,
    optimise: bool = True,
    arena: bool = True,
    prepack: bool = True,
    plan: bool = True,
    alternating: bool = False,
    profile: str = "",
) -> ort.InferenceSession:
    """Load a model into onnxruntime.

    Weights in external data files are mapped from there. A model whose other weights are many, or
    whose data files lie in several folders, goes through a temporary copy that is mapped too.

    Args:
        model: unchanged; a ModelProto has to carry its weights.
        runtime: providers and threads.
        optimise: False runs the nodes exactly as written (ORT_DISABLE_ALL).
        arena: False gives memory back after each run, for large activations.
        prepack: False leaves weights where they are mapped instead of copying them into the layout
            of the kernels.
        plan: False allocates each tensor when it is computed; onnxruntime's planning takes time
            that grows with the square of the number of nodes, 27 s for 16,000.
        profile: how the file begins that the profile is to be written to; "" for no profile.
        alternating: True lets threads rest as soon as a run is over: waiting for the next one they
            would take the time of the session that runs in between.

    Raises:
        RuntimeFailure: when onnxruntime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = arena
    options.enable_mem_reuse = options.enable_mem_pattern = plan
    options.intra_op_num_threads = runtime.threads
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if alternating:
        options.add_session_config_entry(_NO_SPINNING_ON, "1")
    if not prepack:
        options.add_session_config_entry(_NO_PREPACKING, "1")
    if isinstance(model, ir.Model):
        folders = {os.path.abspath(tensor.base_dir) for tensor in external_initializers(model)}
        if len(folders) > 1 or inline_bytes(model) > _INLINE_BYTES:
            return _open_through_file(model, options, runtime)
        for folder in folders:
            options.add_session_config_entry(_EXTERNAL_FOLDER, folder)
        proto = to_proto(model)
    else:
        proto = model
    try:
        data = serialise(proto)
    except ValueError as error:
        raise RuntimeFailure(f"the model cannot be serialised: {_first_line(error)}") from error
    return _create(data, options, runtime)


def run(
    session: ort.InferenceSession,
    feed: Mapping[str, npt.NDArray[Any]],
    outputs: Sequence[str] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Run a session once.

    Args:
        session: as opened by `open_session`.
        feed: arrays by input name; bfloat16 and float8 arrays as ml_dtypes.
        outputs: names of the outputs wanted, None for all.

    Returns:
        Arrays by output name; an output that is a sequence or map comes as onnxruntime gives it.

    Raises:
        RuntimeFailure: with the first line of onnxruntime's message.
    """
    names = list(outputs) if outputs is not None else [out.name for out in session.get_outputs()]
    types = [value.type for value in (*session.get_inputs(), *session.get_outputs())]
    try:
        if any(_numpy_lacks(text) for text in types):
            return _run_with_values(session, feed, names)
        return dict(zip(names, session.run(names, dict(feed)), strict=True))
    except Exception as error:
        raise RuntimeFailure(f"onnxruntime cannot run the model: {_first_line(error)}") from error


def _create(
    source: bytes | str, options: ort.SessionOptions, runtime: Runtime
) -> ort.InferenceSession:
    try:
        # the fallback would print, and try the same providers once more
        return ort.InferenceSession(
            source, options, providers=list(runtime.providers), enable_fallback=0
        )
    except Exception as error:
        raise RuntimeFailure(f"onnxruntime refuses the model: {_first_line(error)}") from error


def _open_through_file(
    model: ir.Model, options: ort.SessionOptions, runtime: Runtime
) -> ort.InferenceSession:
    folder = tempfile.mkdtemp(prefix="onnxprune-")
    try:
        path = Path(folder) / "model.onnx"
        save(model, path, scratch=True)
        session = _create(str(path), options, runtime)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # The session maps the weights; POSIX lets the files go at once, Windows only afterwards.
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        weakref.finalize(session, shutil.rmtree, folder, ignore_errors=True)
    return session


def _numpy_lacks(type_text: str) -> bool:
    """Say whether onnxruntime cannot exchange this tensor type as a plain numpy array."""
    return "bfloat16" in type_text or "float8" in type_text


def element_type(type_text: str) -> ir.DataType:
    """Turn onnxruntime's "tensor(bfloat16)" into the ONNX data type."""
    return ir.DataType[type_text.removeprefix("tensor(").removesuffix(")").upper()]


def _run_with_values(
    session: ort.InferenceSession, feed: Mapping[str, npt.NDArray[Any]], names: list[str]
) -> dict[str, npt.NDArray[Any]]:
    """Run through OrtValues, passing the bits of types that onnxruntime's numpy bridge lacks."""
    types = {value.name: value.type for value in session.get_inputs()}
    values = {}
    for name, array in feed.items():
        if _numpy_lacks(types.get(name, "")):
            dtype = element_type(types[name])
            bits = np.asarray(array, dtype.numpy(), order="C")
            unsigned = np.uint16 if dtype.itemsize == 2 else np.uint8
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                bits.view(unsigned), int(dtype)
            )
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    results = session.run_with_ort_values(names, values)
    return {name: _to_numpy(value) for name, value in zip(names, results, strict=True)}


def _to_numpy(value: ort.OrtValue) -> npt.NDArray[Any]:
    if not _numpy_lacks(value.data_type()):
        array: npt.NDArray[Any] = value.numpy()
        return array
    dtype = element_type(value.data_type())
    bits = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bits, dtype.numpy()).reshape(value.shape())


def _first_line(error: BaseException) -> str:
    lines = _NOISE.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
