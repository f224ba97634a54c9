"""Which indices of which tensors live and die together (COUPLING.md)."""
