"""Criteria: how much each unit matters, and the order in which the units of a group go.

A third-party criterion is a class with the attributes and the method of `Criterion`, named by an
entry point of the group `onnxprune.criteria`.
"""
