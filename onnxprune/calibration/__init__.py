"""Samples in; batches, statistics of activations and walks through a model out."""
