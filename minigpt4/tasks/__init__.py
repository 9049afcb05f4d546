"""Tasks: what one training step means."""

from minigpt4.tasks import image_text_pretrain

__all__ = ["image_text_pretrain"]
