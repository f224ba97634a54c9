"""Results as plain data, terminal text and HTML pages."""
