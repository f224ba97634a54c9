"""Least squares on calibration samples: which units matter, and new weights for what is kept."""
