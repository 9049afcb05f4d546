"""Feature cache: the frozen tower's output of every image, computed once."""
