"""Which single weights of a layer are to be zero, and what the others become."""
