"""Files out, whole or not at all: models with their external data, and text.

Everything is written to temporary files beside the destination, flushed to the disk and renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from onnxprune.errors import InputError, first_line
from onnxprune.model.protobuf import hollow, serialise, to_proto
from onnxprune.model.tensors import (
    INLINE_LIMIT,
    data_file_of,
    initializer_bytes,
    initializers,
    store_sparse,
    swapped,
)

# Below this many bytes a tensor is cheaper inside the model than in a data file.
_EXTERNAL_FROM = 1024
_BINARY = getattr(os, "O_BINARY", 0)  # only Windows tells text from binary files


def check_writable(path: str | os.PathLike[str], protect: Path | None = None) -> None:
    """Make sure that a file can be written, before any work is spent on its content.

    Args:
        path: the file to be written later.
        protect: a file that must not be overwritten: the input.

    Raises:
        InputError: when the folder is missing or not writable, or the path is the input's.
    """
    target = Path(path)
    for file in (target, _data_path(target)):
        if protect is not None and _same_file(file, protect):
            raise InputError(f"{path}: would overwrite the input {protect}; name another file")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: exists and is not a regular file; name another file")
    if not target.parent.exists():
        raise InputError(f"{path}: the folder {target.parent} does not exist; create it first")
    if not target.parent.is_dir():
        raise InputError(f"{path}: {target.parent} is not a folder")
    probe = _temporary(target)
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(probe)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    protect: Path | None = None,
    scratch: bool = False,
) -> None:
    """Write a model; equal models give equal bytes.

    Weights that came from an external data file (and, in such a model, lazily computed ones) go
    to `<path>.data` beside the model, streamed one at a time; so do the largest ones of a model
    too big for one file. All others stay inside the model.

    Args:
        model: unchanged by the call.
        path: the file to write.
        protect: a file that must not be overwritten: the input.
        scratch: the file is temporary: all larger weights go to the data file, so that they can
            be mapped, and nothing is flushed to the disk.

    Raises:
        InputError: when it cannot be written; nothing is left behind then.
    """
    check_writable(path, protect)
    target = Path(path)
    moved = external_values(model, scratch=scratch)
    data = _data_path(target)
    if moved:
        _check_no_source_overwritten(model, data)
    with contextlib.ExitStack() as files:
        # Leaving the stack renames in reverse order: the data first, then the model.
        model_file = files.enter_context(_atomic_file(target, flushed=not scratch))
        if moved:
            data_file = files.enter_context(_atomic_file(data, flushed=not scratch))
            references = _write_tensors(moved, data_file, data)
        else:
            references = {}
        with swapped(references):
            model_file.write(_serialised(model, target))


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a text file (UTF-8, lines ending in "\n" on every system), whole or not at all.

    Raises:
        InputError: when it cannot be written.
    """
    check_writable(path)
    with _atomic_file(Path(path)) as file:
        file.write(text.encode("utf-8"))


def external_values(model: ir.Model, *, scratch: bool = False) -> list[ir.Value]:
    """Choose the initializers that `save` writes to a data file, in their order in the model."""
    candidates = [
        value
        for value in initializers(model)
        if value.const_value is not None and value.const_value.dtype != ir.DataType.STRING
    ]
    large = [value for value in candidates if initializer_bytes(value) >= _EXTERNAL_FROM]
    chosen = {value for value in candidates if data_file_of(value) is not None}
    if chosen:
        chosen.update(value for value in large if isinstance(value.const_value, ir.LazyTensor))
    inline = sum(initializer_bytes(value) for value in candidates if value not in chosen)
    if scratch or inline > INLINE_LIMIT:
        chosen.update(large)
    return [value for value in candidates if value in chosen]


def _check_no_source_overwritten(model: ir.Model, data: Path) -> None:
    for value in initializers(model):
        source = data_file_of(value)
        if source is not None and _same_file(source, data):
            raise InputError(f"{data}: holds weights of the input; save under another name")


def _write_tensors(
    values: list[ir.Value], file: BinaryIO, path: Path
) -> dict[ir.Value, ir.TensorProtocol]:
    """Append tensors to the data file one after another; return what refers to them."""
    references: dict[ir.Value, ir.TensorProtocol] = {}
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        offset = file.tell()
        if hasattr(tensor, "tofile"):
            tensor.tofile(file)
        else:
            file.write(tensor.tobytes())
        if file.tell() - offset != tensor.nbytes:
            raise InputError(
                f"{path}: the weight {value.name!r} wrote {file.tell() - offset} bytes instead of "
                f"{tensor.nbytes}; its data file is damaged"
            )
        references[value] = ir.ExternalTensor(
            path.name,
            offset,
            tensor.nbytes,
            ir.DataType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            name=value.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return references


def _serialised(model: ir.Model, path: Path) -> bytes:
    try:
        return serialise(store_sparse(model, to_proto(model)))
    except ValueError as error:
        raise InputError(f"{path}: the model cannot be written: {first_line(error)}") from error


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}.tmp")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them does not exist
        return False


@contextlib.contextmanager
def _atomic_file(path: Path, *, flushed: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` when the block ends without an exception."""
    temporary = _temporary(path)
    try:
        # os.open rather than tempfile: the file gets the permissions any new file would get
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | _BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if flushed:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flushed:
            _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def model_bytes(model: ir.Model) -> int:
    """Bytes of the model when saved, external data included; weights outside are not read."""
    outside = external_values(model)
    with swapped({value: hollow(value) for value in outside}):
        inside = int(store_sparse(model, to_proto(model)).ByteSize())
    tensors = (value.const_value for value in outside)
    return inside + sum(tensor.nbytes for tensor in tensors if tensor is not None)
