"""Benchmarks: ratios measured within one run, one JSON line a figure. `make bench` or `make bench ONLY=name`."""
