"""Conversation: templates and the turns of a chat → the prompt that the language model reads.

Source: prompt strings recorded from the original (``tests/golden/conversation_*.json``).
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
    """How a language model was taught to tell who speaks.

    Attributes:
        system: Text in front of everything; an empty one brings no separator either.
        user: Put before what the user says.
        assistant: Put before an answer that is there already.
        opening: Put where the answer is to be generated (v1 leaves out the space).
        separator: Put behind the system text and every message.
        stop: Text at which an answer ends, or several; it is cut there.
        ending: Put behind an answer instead of the separator.
        controls: What tells who speaks; nobody can say it. Empty: the marks in the other texts.
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
        """The controls; where none are named, what marks a speaker or an end in the other texts."""
        if self.controls:
            return self.controls
        between = (self.user, self.assistant, self.opening, self.separator, self.behind_answer)
        found = set(_MARK.findall(self.system))
        for text in (*between, *self.stops):
            # A role without a mark, "USER: ", is one as a whole.
            found |= set(_MARK.findall(text)) or {text.strip()}
        return tuple(sorted(mark for mark in found if len(mark) > 1))


def stop_texts(stop: str | tuple[str, ...]) -> tuple[str, ...]:
    """One stop text or several, without empty ones."""
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
    """Add a template of one's own, from a file that a YAML names under ``plugins``.

    Raises:
        ConfigError: for a name that is taken by another template.
    """
    if name == OWN or TEMPLATES.setdefault(name, template) != template:
        raise ConfigError(f"the template {name!r} is registered already; choose another name")


def plain_text(text: str, controls: Iterable[str]) -> str:
    """A text in which nothing is control any more: ``# ##`` for ``###``, ``< s>`` for ``<s>``.

    A space behind its first character is all it takes, and a model still reads what was meant.
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

    def undo(self) -> int:
        """Take back the last question with its answer; the number of images that go with it."""
        images, before = 0, len(self.messages)
        while self.messages and (
            len(self.messages) == before or self.messages[-1].speaker == "user"
        ):
            images += self.messages.pop().images
        return images

    def without_oldest_turn(self) -> "Conversation | None":
        """The same without its oldest question and answer; None where nothing may go any more.

        Turns of words alone go first, then the words beside images: a later question may be about
        any image, so none is left out. The question at the end always stays.
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
        """Everything so far, ready for the next answer."""
        return self.transcript() + self.template.opening

    def transcript(self) -> str:
        """Everything so far."""
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
