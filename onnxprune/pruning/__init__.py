"""The run: prepare, search, build, describe; plans and results."""
