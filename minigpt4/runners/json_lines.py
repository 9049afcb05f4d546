"""Kept for a while: JSON lines are in ``minigpt4.files``."""

from minigpt4.files import JsonLines, plain

__all__ = ["JsonLines", "plain"]
