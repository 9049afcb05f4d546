"""Chat: images and turns → an answer. The one inference class of all apps and of evaluation."""

from minigpt4.chat.core import Chat, ImageInput, Part, open_image
from minigpt4.chat.generation import NonFiniteLogitsError
from minigpt4.chat.loading import build_chat, choose_device, load_chat
from minigpt4.chat.sessions import ChatSession, Usage
from minigpt4.chat.waiting import BusyError, FairQueue, Ticket
from minigpt4.conversation.options import GenerationOptions

__all__ = [
    "BusyError",
    "Chat",
    "ChatSession",
    "FairQueue",
    "GenerationOptions",
    "ImageInput",
    "NonFiniteLogitsError",
    "Part",
    "Ticket",
    "Usage",
    "build_chat",
    "choose_device",
    "load_chat",
    "open_image",
]
