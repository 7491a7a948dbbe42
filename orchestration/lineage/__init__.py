"""Lineage: where every column comes from and what it touches, as a graph and as things to look at."""
