"""Measurements: each is `python -m benchmarks.<name>`, prints what it stands on and writes a CSV file."""
