"""Preflight: every check that runs before anything is loaded."""
