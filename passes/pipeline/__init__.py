"""Pipelines: passes one after another, each checked before the next begins."""
