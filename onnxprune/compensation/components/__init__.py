"""Low rank: units between linear maps rewritten into components."""
