"""ONNX files and objects in and out, and running them in onnxruntime."""
