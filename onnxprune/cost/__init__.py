"""What a model costs: parameters, bytes, multiply-accumulates, measured latency."""
