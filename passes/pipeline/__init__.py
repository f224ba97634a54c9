"""Pipelines: register passes, read their options, run, check and replay them."""
