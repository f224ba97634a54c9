"""Is the result right: the certificate, the interface, other batch sizes."""
