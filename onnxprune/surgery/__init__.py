"""Changes of the graph: mask and slice tensors, patch attributes and shapes, add biases."""
