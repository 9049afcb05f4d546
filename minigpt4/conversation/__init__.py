"""Conversation: templates and the turns of a chat → the prompt that the language model reads.

Source: prompts recorded from the original (``tests/golden/conversation_*.json``).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from minigpt4.errors import ConfigError

Speaker = Literal["user", "assistant"]

OWN = "own"  # in place of a template's name: the chat template that came with the language model
IMAGE_TEXT = "<Img><ImageHere></Img>"
_IMAGE_CONTROLS = ("<ImageHere>", "<Img>", "</Img>")
# What special words look like: <|im_end|>, </s>, <<SYS>>, [INST], ###.
_MARK = re.compile(r"<{1,2}[|/]?[^\s<>]{1,40}>{1,2}|\[/?[A-Z_]+\]|#{2,}")
_SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)


@dataclass(frozen=True)
class Template:
    """How turns are written, as the language model was trained on them.

    Attributes:
        system: Text before everything; an empty one has no separator.
        user: Text before a question.
        assistant: Text before an answer that exists.
        opening: Text before the answer to be generated (v1 leaves out the space).
        separator: Text after the system text and every message.
        stop: Text that ends an answer, or several; the answer is cut there.
        ending: Text after an answer instead of the separator.
        controls: Texts that mark a speaker or an end; what users write cannot contain them. Empty:
            the marks in the other texts.
    """

    system: str
    user: str
    assistant: str
    opening: str
    separator: str
    stop: str | tuple[str, ...]
    ending: str | None = None
    controls: tuple[str, ...] = field(default=(), compare=False)

    @property
    def stops(self) -> tuple[str, ...]:
        return stop_texts(self.stop)

    @property
    def behind_answer(self) -> str:
        return self.separator if self.ending is None else self.ending

    @property
    def forbidden(self) -> tuple[str, ...]:
        """The controls; where none are named, the marks of a speaker or an end in the texts."""
        if self.controls:
            return self.controls
        between = (self.user, self.assistant, self.opening, self.separator, self.behind_answer)
        found = set(_MARK.findall(self.system))
        for text in (*between, *self.stops):
            # A role without a mark, "USER: ", counts as a whole.
            found |= set(_MARK.findall(text)) or {text.strip()}
        return tuple(sorted(mark for mark in found if len(mark) > 1))


def stop_texts(stop: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one stop text or several, without empty ones."""
    return tuple(text for text in ((stop,) if isinstance(stop, str) else stop) if text)


TEMPLATES = {
    "vicuna_v0": Template(
        _SYSTEM, "Human: ", "Assistant: ", "Assistant: ", "###", "###", controls=("###",)
    ),
    "vicuna_v0_first_release": Template(
        _SYSTEM, "Human: ", "Assistant: ", "Assistant:", "###", "###", controls=("###",)
    ),
    "llama_2": Template(
        _SYSTEM,
        "<s>[INST] ",
        " [/INST] ",
        " [/INST] ",
        "",
        "</s>",
        controls=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>"),
    ),
}
SHIPPED = frozenset(TEMPLATES)


def register_template(name: str, template: Template) -> None:
    """Add a template from a plug-in; a name that another one has is a ``ConfigError``."""
    if name == OWN or TEMPLATES.setdefault(name, template) != template:
        raise ConfigError(f"the template {name!r} is registered already; choose another name")


def plain_text(text: str, controls: Iterable[str]) -> str:
    """Return a text with a space in each control: ``# ##`` for ``###``, ``< s>`` for ``<s>``.

    Control characters but for tab and newline become spaces, and half characters a question mark.
    """
    text = text.encode("utf-8", "replace").decode()
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text.replace("\r\n", "\n"))
    for control in {*controls, *_IMAGE_CONTROLS}:
        first, rest = control[0], re.escape(control[1:])
        text = re.sub(f"{re.escape(first)}(?={rest})", lambda found: found[0] + " ", text)
    return text


@dataclass
class Message:
    """One message; ``text`` holds an ``<ImageHere>`` for each of its images."""

    speaker: Speaker
    text: str

    @property
    def images(self) -> int:
        return self.text.count(IMAGE_TEXT)


@dataclass
class Conversation:
    """The turns of one chat."""

    template: Template
    messages: list[Message] = field(default_factory=list)

    def add_image(self) -> None:
        """Add an uploaded image: a message of its own, which the next question joins."""
        self.messages.append(Message("user", IMAGE_TEXT))

    def ask(self, question: str) -> None:
        """Add a question; right after an upload it joins that message."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.speaker == "user" and last.text.endswith("</Img>"):
            last.text += " " + question
        else:
            self.messages.append(Message("user", question))

    def answer(self, text: str) -> None:
        """Add an answer of the assistant."""
        self.messages.append(Message("assistant", text))

    def undo(self) -> int:
        """Remove the last question with its answer; return the number of images in them."""
        images = self.messages.pop().images if self.messages else 0
        while self.messages and self.messages[-1].speaker == "user":
            images += self.messages.pop().images
        return images

    def without_oldest_turn(self) -> "Conversation | None":
        """Return the same without its oldest question and answer; None where all must stay.

        Turns without images go first, then the words next to images: a later question may be about
        any image, so none is left out. The last question always stays.
        """
        messages = self.messages
        answers = [i for i, m in enumerate(messages) if m.speaker == "assistant" and i > 0]
        for i in answers:
            if messages[i - 1].speaker == "user" and not messages[i - 1].images:
                return replace(self, messages=messages[: i - 1] + messages[i + 1 :])
        for i in answers:
            shown = Message("user", "".join([IMAGE_TEXT] * messages[i - 1].images))
            return replace(self, messages=[*messages[: i - 1], shown, *messages[i + 1 :]])
        return None

    def prompt(self) -> str:
        """Return everything so far, ready for the next answer."""
        return self.transcript() + self.template.opening

    def transcript(self) -> str:
        """Return everything so far."""
        template = self.template
        around = {
            "user": (template.user, template.separator),
            "assistant": (template.assistant, template.behind_answer),
        }
        text = template.system and template.system + template.separator
        for message in self.messages:
            before, behind = around[message.speaker]
            text += before + message.text + behind
        return text
