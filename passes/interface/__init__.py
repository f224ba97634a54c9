"""Cutting the interface of a model: classes and tokens."""
