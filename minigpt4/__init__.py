"""MiniGPT-4: a frozen language model learns to see by training one linear layer."""
