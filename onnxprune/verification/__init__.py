"""Checks of a result: certificate, interface, difference from the original, quality."""
