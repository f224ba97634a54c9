"""Smaller interfaces and fewer blocks: classes, vocabulary, residual branches."""
