"""Make up for a removal at full width: fold means, re-fit layers, take out redundant units."""
