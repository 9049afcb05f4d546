"""Dialogue: turns of a data set's conversation → prompts and answers, as the chat writes them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from minigpt4.conversation import IMAGE_TEXT, Conversation, Template
from minigpt4.datasets.samples import Turn
from minigpt4.models.llm_input import IMAGE_MARK, Exchange


def exchanges(
    turns: Sequence[Turn], template: Template, plain: Callable[[str], str]
) -> list[Exchange]:
    """Every answer of a conversation, learnt behind everything that is new before it.

    Args:
        turns: From a system text or a user to an assistant, in turns.
        template: Of the language model's conversations.
        plain: Takes from a text what tells who speaks.
    """
    found: list[Exchange] = []
    conversation = Conversation(template)
    begun = 0  # characters of the transcript that stand in earlier exchanges
    for turn in turns:
        if turn.speaker != "assistant":
            conversation = _said(conversation, turn, plain)
            continue
        prompt = conversation.prompt()[begun:]
        words = plain(turn.text)
        conversation.answer(words)
        transcript = conversation.transcript()
        begun = len(transcript)
        found.append(Exchange(prompt, words + ending(template)))
    return found


def ending(template: Template) -> str:
    """What an answer is taught to end with; its stop where the chat writes nothing there."""
    return template.behind_answer or next(iter(template.stops), "")


def open_prompt(turns: Sequence[Turn], template: Template, plain: Callable[[str], str]) -> str:
    """A conversation up to where its last answer begins, as a prompt to answer."""
    conversation = Conversation(template)
    for turn in turns[:-1]:
        if turn.speaker == "assistant":
            conversation.answer(plain(turn.text))
        else:
            conversation = _said(conversation, turn, plain)
    return conversation.prompt()


def _said(conversation: Conversation, turn: Turn, plain: Callable[[str], str]) -> Conversation:
    """The conversation after what the user says, as in a chat: uploads, then words."""
    if turn.speaker == "system":
        template = replace(conversation.template, system=plain(turn.text))
        return Conversation(template, conversation.messages)
    uploads, words = _parts(turn.text, plain)
    for _ in range(uploads):
        conversation.add_image()
    if words:
        conversation.ask(" ".join(words))
    return conversation


def _parts(text: str, plain: Callable[[str], str]) -> tuple[int, list[str]]:
    """How many images stand before the first word, and what follows."""
    first, *others = (plain(part).strip() for part in text.split(IMAGE_MARK))
    uploads, words = 0, [first] if first else []
    for part in others:
        if words:
            words.append(IMAGE_TEXT)
        else:
            uploads += 1
        if part:
            words.append(part)
    return uploads, words
