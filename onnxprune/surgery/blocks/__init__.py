"""Residual blocks: found, taken apart, taken out."""
