"""Zeros in single weights: patterns, scores, second-order solution."""
