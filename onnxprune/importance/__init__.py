"""Criteria: how much each unit matters, one small file for each idea.

A third-party criterion is a class with the attributes and the method of `Criterion`, named by an
entry point of the group `onnxprune.criteria`.
"""
