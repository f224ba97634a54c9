"""Lossless removal of units: dead, constant, duplicate, proportional."""
