"""Conversation: templates and turns → the prompt that the language model reads."""

from minigpt4.conversation.turns import (
    IMAGE_TEXT,
    OWN,
    SHIPPED,
    TEMPLATES,
    Conversation,
    Message,
    Speaker,
    Template,
    plain_text,
    register_template,
    stop_texts,
)

__all__ = [
    "IMAGE_TEXT",
    "OWN",
    "SHIPPED",
    "TEMPLATES",
    "Conversation",
    "Message",
    "Speaker",
    "Template",
    "plain_text",
    "register_template",
    "stop_texts",
]
