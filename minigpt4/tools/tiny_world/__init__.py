"""The embedded default: drawn scenes and towers small enough to watch the method work on a CPU."""
