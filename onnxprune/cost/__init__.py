"""What a cut leaves of parameters, MACs, file size, memory and latency."""
