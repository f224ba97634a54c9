"""What a model costs: parameters, multiply-accumulates, bytes, memory, measured latency."""
