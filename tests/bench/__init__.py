"""Benchmarks: what a hop costs, as a ratio to bare SDK spans measured in the same run."""
