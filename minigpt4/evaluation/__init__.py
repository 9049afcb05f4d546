"""Evaluation: validation during a training, and evaluation of data sets."""
