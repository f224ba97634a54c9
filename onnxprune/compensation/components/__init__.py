"""Units rewritten into components where only linear maps lie between."""
