"""Sessions: what one chat has said and shown, and what its last answer took."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from minigpt4.conversation import Conversation


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens.

    Attributes:
        prompt: Of everything before the answer, images included.
        kept: Of those, the ones that were not read again.
        answer: Written, what ends the answer included.
        end: ``stop`` where the model ended it, ``length`` at ``max_new_tokens``, ``cancelled``.
    """

    prompt: int
    kept: int
    answer: int
    end: Literal["stop", "length", "cancelled"]


@dataclass
class ChatSession:
    """One chat's turns and encoded images; sessions share nothing but the model.

    Attributes:
        conversation: The turns that the model still sees.
        images: Tokens ``[Q, H]`` of each image in them.
        dropped: Turns left out so far because the context was full.
        usage: Of the last answer.
    """

    conversation: Conversation
    images: list[torch.Tensor] = field(default_factory=list)
    dropped: int = 0
    usage: Usage | None = None

    def copy(self) -> "ChatSession":
        """A session that goes its own way from here; the images' tokens are shared."""
        messages = [replace(message) for message in self.conversation.messages]
        conversation = replace(self.conversation, messages=messages)
        return ChatSession(conversation, list(self.images), self.dropped)

    def undo(self) -> None:
        """Take back the last question and its answer, with the images shown in it."""
        if taken := self.conversation.undo():
            del self.images[-taken:]
