"""Models: pixels and prompts → the language model's loss or words; one linear layer is trained."""

from minigpt4.models import build

__all__ = ["build"]
