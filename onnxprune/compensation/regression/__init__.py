"""Linear layers as least-squares problems, and their solution."""
