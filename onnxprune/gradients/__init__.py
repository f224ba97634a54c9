"""Gradients of a loss with respect to activations, as ONNX nodes that onnxruntime runs.

Only the gradient of a mask at each input of a reader is needed, so activations are differentiated
and weights are not. Operators have a rule of a few lines each (`operators`); fused ones are taken
apart first (`decompositions`). All runs in single precision, whatever the model's own. Groups
before a node that has neither rule nor decomposition get no gradient; the reason is recorded.

No library does this for current operator sets without a training framework: onnxruntime-training
ended with 1.19.2 (2024) and pins its own onnxruntime; onnx2torch 1.5.15 (2024) needs torch, several
hundred MB, and converts to another graph whose tensors have other names; jaxonnxruntime 0.3.0
(2023) needs jax; tinygrad needs a C compiler at run time. A graph of our own runs where inference
runs, with the same kernels and providers, on what the passes before have made of the model.
"""
