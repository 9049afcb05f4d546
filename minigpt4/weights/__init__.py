"""Weights: reading, writing, naming and downloading weight files."""
