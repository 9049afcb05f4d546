"""Data sets: files on disk → endless, seeded streams of images and strings."""
