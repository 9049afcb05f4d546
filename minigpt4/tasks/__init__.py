"""Tasks: what one training step and one step of an evaluation mean."""

from minigpt4.tasks import image_text_pretrain

__all__ = ["image_text_pretrain"]
