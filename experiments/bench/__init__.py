"""Benchmarks, and the programs that try the worker; they run in a checkout."""
