"""Bridges to other ONNX tools: onnx-graphsurgeon, onnxruntime.quantization."""
