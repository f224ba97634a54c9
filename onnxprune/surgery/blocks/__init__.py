"""Residual blocks: find them, separate them from fused nodes, remove them."""
