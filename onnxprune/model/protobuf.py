"""Protobuf messages to bytes and back, with one kind of error."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

__all__ = ["LARGEST_MESSAGE", "parse", "serialise"]

LARGEST_MESSAGE = 2**31 - 1
"""Bytes a protobuf message can have."""


def parse(data: bytes) -> onnx.ModelProto:
    """Read a model.

    Raises:
        ValueError: when the bytes are no protobuf message of this kind.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return proto


def serialise(proto: onnx.ModelProto) -> bytes:
    """Write a model; equal messages give equal bytes.

    Raises:
        ValueError: when the message is too large.
    """
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ValueError(str(error)) from error
    return data
