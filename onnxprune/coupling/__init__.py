"""Which indices of which tensors can only be removed together: labels, rules, dependency groups."""
