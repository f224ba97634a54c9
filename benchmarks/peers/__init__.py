"""Other tools on the graphs of the benchmarks, each in an environment of its own."""
