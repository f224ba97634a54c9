"""Calibration samples in, statistics of activations out."""
