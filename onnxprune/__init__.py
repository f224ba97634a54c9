"""Structured pruning that works on the ONNX file itself."""

__version__ = "0.1.0"
