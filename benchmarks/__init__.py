"""Speed: `benchmarks/bench` and its parts."""
