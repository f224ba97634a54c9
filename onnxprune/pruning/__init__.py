"""A run from model to result: prepare, search, build; plans and results."""
