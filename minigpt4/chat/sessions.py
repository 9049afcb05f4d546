"""Sessions: the turns and images of one chat, and the token counts of its last answer."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from minigpt4.conversation import Conversation


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of an answer."""

    prompt: int  # everything before the answer, images included
    kept: int  # of those, the ones that were not read again
    answer: int  # with its end
    end: Literal["stop", "length", "cancelled"]  # by the model, at ``max_new_tokens``, by a user


@dataclass
class ChatSession:
    """One chat's turns and encoded images; sessions share nothing but the model."""

    conversation: Conversation  # the turns that the model still sees
    images: list[torch.Tensor] = field(default_factory=list)  # tokens [Q, H] of each image in them
    dropped: int = 0  # turns left out so far because the context was full
    usage: Usage | None = None  # of the last answer

    def copy(self) -> "ChatSession":
        """Return a copy that shares the images' tokens."""
        messages = [replace(message) for message in self.conversation.messages]
        conversation = replace(self.conversation, messages=messages)
        return ChatSession(conversation, list(self.images), self.dropped)

    def undo(self) -> None:
        """Take back the last question and its answer, with the images shown in it."""
        if taken := self.conversation.undo():
            del self.images[-taken:]
