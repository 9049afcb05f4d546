"""Conversation: templates and the turns of a chat → the prompt that the language model reads.

Source: prompt strings recorded from the original (``tests/golden/conversation_*.json``).
"""

from dataclasses import dataclass, field
from typing import Literal

Speaker = Literal["user", "assistant"]

IMAGE_TEXT = "<Img><ImageHere></Img>"
_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)


@dataclass(frozen=True)
class Template:
    """How a language model was taught to tell who speaks.

    Attributes:
        system: Text in front of everything.
        user: Put before what the user says.
        assistant: Put before an answer that is there already.
        opening: Put where the answer is to be generated (v1 leaves out the space).
        separator: Put behind the system text and every message.
        stop: Text at which an answer ends; it is cut there.
    """

    system: str
    user: str
    assistant: str
    opening: str
    separator: str
    stop: str


TEMPLATES = {
    "vicuna_v0": Template(_SYSTEM, "Human: ", "Assistant: ", "Assistant: ", "###", "###"),
    "vicuna_v0_first_release": Template(
        _SYSTEM, "Human: ", "Assistant: ", "Assistant:", "###", "###"
    ),
    "llama_2": Template(_SYSTEM, "<s>[INST] ", " [/INST] ", " [/INST] ", "", "</s>"),
}


@dataclass
class Message:
    """One message; ``text`` holds an ``<ImageHere>`` for each of its images."""

    speaker: Speaker
    text: str


@dataclass
class Conversation:
    """The turns of one chat."""

    template: Template
    messages: list[Message] = field(default_factory=list)

    def add_image(self) -> None:
        """The user uploads an image: a message of its own, which the next question joins."""
        self.messages.append(Message("user", IMAGE_TEXT))

    def ask(self, question: str) -> None:
        """The user asks; right after an upload the question joins that message."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.speaker == "user" and last.text.endswith("</Img>"):
            last.text += " " + question
        else:
            self.messages.append(Message("user", question))

    def answer(self, text: str) -> None:
        """The assistant has answered."""
        self.messages.append(Message("assistant", text))

    def prompt(self) -> str:
        """Everything so far, ready for the next answer."""
        return self.transcript() + self.template.opening

    def transcript(self) -> str:
        """Everything so far."""
        template = self.template
        roles = {"user": template.user, "assistant": template.assistant}
        turns = [roles[m.speaker] + m.text + template.separator for m in self.messages]
        return template.system + template.separator + "".join(turns)
