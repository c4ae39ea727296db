"""Comparisons, benchmarks and pictures."""
