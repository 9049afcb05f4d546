"""Presets: what a YAML need not say about a model or a data set."""
