"""Benchmarks: claims about speed as ratios of medians, taken in one run. `make bench`."""
