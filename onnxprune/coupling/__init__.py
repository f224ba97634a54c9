"""Which units can only be removed together: axis labels, operator rules, dependency groups."""
