"""Own templates: a language model's chat template → how turns are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from minigpt4.conversation import OWN, Conversation, Message, Speaker, Template
from minigpt4.errors import CheckpointError, ConfigError, one_line
from minigpt4.models.tokenizer import load_auto_tokenizer, load_tokenizer, special_words

# Texts that no chat template holds; they show where it puts messages.
_QUESTION, _ANSWER, _NEXT = "Zquestionz", "Zanswerz", "Znextz"
_TRIALS = [  # questions and answers in turn
    ["What is this?"],
    ["What is this?", "A red circle,\nand a ring."],
    ["What is this?", "A red circle.", "Are you sure?"],
    ["One", "two", "three?", "Four.", "And  five?"],
    ["One", "two", "three?", "Four.", "And  five?", "6"],
]


def own_template(llama_model: str) -> Template:
    """Return the chat template that came with a language model, cut out of what it writes.

    Raises:
        ConfigError: without one, or if it writes other conversations otherwise.
    """
    try:
        ours, tokenizer = load_tokenizer(llama_model), load_auto_tokenizer(llama_model)
    except CheckpointError as error:
        raise ConfigError(f"chat.template: {OWN}: {error}") from error
    if not tokenizer.chat_template:
        raise _refusal(llama_model, "has no chat template of its own")
    try:
        writer = _Writer(tokenizer, "" if ours.bos_id is None else ours.piece(ours.bos_id))
        template = _cut_out(writer, llama_model)
        if all(_agrees(writer, template, trial) for trial in _TRIALS):
            return template
    except ConfigError:
        raise
    except Exception as error:  # whatever a program in a template does
        text = f"has a chat template that fails ({type(error).__name__}: {one_line(error)})"
        raise _refusal(llama_model, text) from error
    raise _refusal(llama_model, "has a chat template that writes turns now so, now otherwise")


def _refusal(llama_model: str, text: str) -> ConfigError:
    return ConfigError(
        f"chat.template: {OWN}: {llama_model} {text}; write it out: system, user, assistant, "
        "opening, separator and stop under chat.template (docs/extending.md)"
    )


@dataclass(frozen=True)
class _Writer:
    """A language model's own chat template; ``bos`` begins every row that lacks it."""

    tokenizer: Any
    bos: str

    def __call__(self, texts: Sequence[str], opening: bool = False, **names: object) -> str:
        roles = ("user", "assistant")
        text = self.tokenizer.apply_chat_template(
            [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)],
            tokenize=False,
            add_generation_prompt=opening,
            **names,
        )
        return str(text)

    def asks_for_the_date(self) -> bool:
        """Return whether it calls the function that gives the date."""
        try:
            self([_QUESTION], strftime_now="")
        except TypeError:
            return True
        return False


def _cut_out(write: _Writer, llama_model: str) -> Template:
    """Return what is around the texts of a trial; other trials show whether that is right."""
    asked = write([_QUESTION])
    opened = write([_QUESTION], opening=True)
    if write.asks_for_the_date():
        raise _refusal(llama_model, "has a chat template with the date in it, which changes")
    start, _, separator = asked.partition(_QUESTION)
    _, _, answered = write([_QUESTION, _ANSWER]).partition(_QUESTION)
    before_answer, _, ending = answered.partition(_ANSWER)
    _, _, followed = write([_QUESTION, _ANSWER, _NEXT]).partition(_ANSWER)
    user = followed.partition(_NEXT)[0].removeprefix(ending)
    system = start.removesuffix(user).removeprefix(write.bos)
    assistant, opening = before_answer.removeprefix(separator), opened.removeprefix(asked)
    if system.endswith(separator):
        system = system.removesuffix(separator)
    elif system:  # it ends otherwise than a question: then a question's end begins the answer
        separator, assistant, opening = "", separator + assistant, separator + opening
    words = [word for word in special_words(write.tokenizer) if word in ending]
    stop = min(words, key=ending.index, default=ending.strip() or user.strip())
    return Template(system, user, assistant, opening, separator, stop, ending)


def _agrees(write: _Writer, template: Template, trial: Sequence[str]) -> bool:
    """Return whether a template writes a conversation as the language model's own does."""
    speakers: cycle[Speaker] = cycle(("user", "assistant"))
    messages = [Message(*pair) for pair in zip(speakers, trial, strict=False)]
    conversation, asking = Conversation(template, messages), len(trial) % 2 == 1
    ours = conversation.prompt() if asking else conversation.transcript()
    return write(trial, opening=asking) in (ours, write.bos + ours)
