"""Weights that make up for removed units: mean folding, least squares, components, merging."""
