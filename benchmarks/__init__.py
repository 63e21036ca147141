"""Benchmarks: product and peers side by side in one run, on the same data, weights and machine."""
