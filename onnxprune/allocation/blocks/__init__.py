"""Which residual blocks to remove before widths are cut."""
