"""Latency: models measured as a whole, kernels timed at several widths and tabulated."""
