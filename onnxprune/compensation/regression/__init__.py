"""Linear layers as regressions over rows of activations, and their solution."""
