"""Smaller interfaces: find and cut the classes of an output, the tokens of a vocabulary."""
