"""Feeds from code and from ONNX test data: `module.py:function`, `test_data_set_*/input_*.pb`."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnxprune.errors import CalibrationError, typed_line
from onnxprune.model.inputs import InputSpec

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[^\W\d]\w*)")
"""What a source that names a function looks like."""


def load_function(source: str, purpose: str = "calibration") -> Callable[..., Any]:
    """Import a file and return one of its functions; see `load_attribute`.

    Raises:
        CalibrationError: when there is no such file or function, or importing it fails.
    """
    function = load_attribute(source, purpose)
    if not callable(function):
        path, _, name = source.rpartition(":")
        raise CalibrationError(f"{purpose} {source}: {path} has no function {name!r}")
    result: Callable[..., Any] = function
    return result


def load_attribute(source: str, purpose: str = "calibration") -> Any:
    """Import a file and return what it calls by a name.

    Args:
        source: "path/to/module.py:name"; the path is relative to the working folder. The file can
            import its neighbours, as when it is run as a script.
        purpose: what it is for, for messages.

    Raises:
        CalibrationError: when there is no such file, importing it fails, or it lacks the name.
    """
    match = FUNCTION.fullmatch(source)
    assert match is not None
    path = Path(match["file"])
    where = f"{purpose} {source}"
    if not path.is_file():
        raise CalibrationError(f"{where}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"_onnxprune_{purpose}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and the like look their module up there
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CalibrationError(f"{where}: importing it: {typed_line(error)}") from error
    finally:
        sys.path.remove(str(path.absolute().parent))
    if not hasattr(module, match["name"]):
        raise CalibrationError(f"{where}: {path} has no function {match['name']!r}")
    return getattr(module, match["name"])


def pb_feeds(
    folder: Path, specs: Sequence[InputSpec], where: str
) -> Callable[[], Iterator[object]] | None:
    """Find ONNX test data in a folder.

    Args:
        folder: holds `input_*.pb`, or `test_data_set_*` folders that do.
        specs: the inputs of the model, for files whose tensors have other names.
        where: names the source in messages.

    Returns:
        A function that yields one feed per set, None when the folder holds no such data.
    """
    sets = [folder] if _input_files(folder) else sorted(folder.glob("test_data_set_*"), key=_number)
    sets = [each for each in sets if _input_files(each)]
    if not sets:
        return None
    return lambda: (_read_set(each, specs, where) for each in sets)


def _input_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("input_*.pb"), key=_number)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", path.stem)
    return (int(digits[1]) if digits else -1, path.name)


def _read_set(folder: Path, specs: Sequence[InputSpec], where: str) -> dict[str, object]:
    tensors = [_read_tensor(file) for file in _input_files(folder)]
    by_name = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    if len(by_name) == len(tensors) and by_name.keys() <= {spec.name for spec in specs}:
        return dict(by_name)
    if len(tensors) != len(specs):
        raise CalibrationError(
            f"{where}: {folder.name} has {len(tensors)} input_*.pb, the model has {len(specs)} "
            "inputs"
        )
    return {
        spec.name: onnx.numpy_helper.to_array(tensor)
        for spec, tensor in zip(specs, tensors, strict=True)
    }


def _read_tensor(path: Path) -> onnx.TensorProto:
    try:
        tensor = onnx.load_tensor(path)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CalibrationError(
                f"calibration {path}: its data is external, which is unsupported"
            )
        onnx.numpy_helper.to_array(tensor)
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(f"calibration {path}: is no tensor: {typed_line(error)}") from error
    return tensor
