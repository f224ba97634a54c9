"""Latency: measured of whole models, tabulated for single kernels at every width."""
