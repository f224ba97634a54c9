"""ONNX files and objects to onnx-ir models and back, and running them in onnxruntime."""
