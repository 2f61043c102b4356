"""Benchmarks: each answers one question, beside a floor measured in the same minutes."""
