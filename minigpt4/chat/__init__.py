"""Chat: images and turns → an answer. The one inference core of page, terminal and evaluation."""

from minigpt4.chat.core import Chat, ChatSession
from minigpt4.chat.generation import GenerationOptions
from minigpt4.chat.loading import (
    build_chat,
    check_chat,
    choose_device,
    generation_options,
    load_chat,
)

__all__ = [
    "Chat",
    "ChatSession",
    "GenerationOptions",
    "build_chat",
    "check_chat",
    "choose_device",
    "generation_options",
    "load_chat",
]
