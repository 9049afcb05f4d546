"""Chat: images and turns → an answer. The one inference core of page, terminal and evaluation."""

from minigpt4.chat.core import Chat, Part
from minigpt4.chat.generation import GenerationOptions, NonFiniteLogitsError
from minigpt4.chat.loading import (
    build_chat,
    check_chat,
    choose_device,
    generation_options,
    load_chat,
)
from minigpt4.chat.sessions import ChatSession, Usage
from minigpt4.chat.waiting import BusyError, FairQueue, Ticket

__all__ = [
    "BusyError",
    "Chat",
    "ChatSession",
    "FairQueue",
    "GenerationOptions",
    "NonFiniteLogitsError",
    "Part",
    "Ticket",
    "Usage",
    "build_chat",
    "check_chat",
    "choose_device",
    "generation_options",
    "load_chat",
]
