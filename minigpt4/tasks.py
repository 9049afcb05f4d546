"""Tasks: what one training step and one step of an evaluation mean.

The task of both stages predicts an image's text, or the answers of a conversation about it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import torch

from minigpt4.conversation import IMAGE_TEXT, TEMPLATES, Conversation, Template, plain_text
from minigpt4.conversation.options import GenerationOptions
from minigpt4.datasets.samples import Batch, Text, Turn, to_device
from minigpt4.models.llm_input import IMAGE_MARK, Exchange, Row, stage_rows
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.registry import TASKS, Hidden

_Kind = Literal["caption", "answer", "choices"]  # of what an evaluation asks for


class Generator(Protocol):
    """What an evaluation generates with: :class:`minigpt4.chat.core.Chat`."""

    model: MiniGPT4
    options: GenerationOptions
    waiting: Any  # one answer is made at a time

    @property
    def template(self) -> Template: ...

    def generate(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[torch.Tensor]],
        stop: Any,
        options: GenerationOptions,
    ) -> list[str]:
        """Return an answer to each prompt."""

    def choose(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[torch.Tensor]],
        choices: Sequence[Sequence[str]],
        endings: Sequence[str],
    ) -> list[str]:
        """Return the most likely choice for each prompt."""


class Task(Protocol):
    """What a training step and an evaluation step are.

    A task is registered in ``TASKS``. Its constructor takes those it needs of ``prompts``,
    ``seed``, ``rank``, ``template`` and ``question``, each ``Annotated[…, Hidden]``.
    """

    def rows(self, model: MiniGPT4, batch: Batch, step: int) -> list[Row]:
        """Return what the model reads and predicts of each sample of a batch."""

    def train_step(self, model: MiniGPT4, batch: Batch, step: int) -> torch.Tensor:
        """Return the loss of a batch, a scalar; ``step`` counts over the whole run."""

    def evaluation_step(self, chat: Any, batch: Batch, numbers: Sequence[int]) -> Sequence[str]:
        """Return an answer for each sample of a batch.

        Args:
            chat: The :class:`Generator` over the model.
            batch: Samples, on the model's device or as a loader gives them.
            numbers: Place of each sample in its data set.
        """


@TASKS.register("image_text_pretrain")
class ImageTextPretrainTask:
    """Language modelling on the text of image-text pairs.

    The targets are captions, and of a conversation the assistant's words; everything around them is
    what the chat writes.

    Args:
        prompts: Stage-2 prompts, none in stage 1. Training samples one per batch and rank, as in
            the original; an evaluation takes them in turn.
        seed: Random seed of the run.
        rank: Rank of this process.
        template: Template of conversations.
        question: Question that an evaluation asks about every sample, whatever its text.
    """

    def __init__(
        self,
        prompts: Annotated[list[str], Hidden],
        seed: Annotated[int, Hidden],
        rank: Annotated[int, Hidden],
        template: Annotated[Template, Hidden] = TEMPLATES["vicuna_v0"],
        question: Annotated[str | None, Hidden] = None,
    ) -> None:
        self._prompts = prompts
        self._identity = f"{seed}/prompt/{rank}"
        self._template = template
        self._question = question

    def prompt_of(self, step: int) -> str | None:
        """Return the prompt of a step of the run; a function of seed, rank and step."""
        if not self._prompts:
            return None
        return random.Random(f"{self._identity}/{step}").choice(self._prompts)

    def rows(self, model: MiniGPT4, batch: Batch, step: int) -> list[Row]:
        texts = zip(batch["text"], batch["image_counts"], strict=True)
        return [self.row(*text, step, model.tokenizer, model.end_sym) for text in texts]

    def row(self, text: Text, images: int, step: int, tokenizer: Tokenizer, end_sym: str) -> Row:
        """Return what is read and predicted of one sample; ``end_sym`` ends a caption."""
        if isinstance(text, str):
            return stage_rows([text], [_for_images(self.prompt_of(step), images)], end_sym)[0]
        return exchanges(text, self._template, _plain(tokenizer, self._template))

    def train_step(self, model: MiniGPT4, batch: Batch, step: int) -> torch.Tensor:
        loss = model(to_device(batch, model.device)["image"], self.rows(model, batch, step))
        assert isinstance(loss, torch.Tensor)
        return loss

    @torch.no_grad()
    def evaluation_step(self, chat: Generator, batch: Batch, numbers: Sequence[int]) -> list[str]:
        """Return the model's answer to each sample, asked in the form it was trained in.

        A caption of number ``i`` is asked for with prompt ``i`` modulo their number, of a
        conversation the last answer; of a sample with choices the most likely one is returned.
        """
        model = chat.model
        image = to_device(batch, model.device)["image"]
        images = iter(model.encode_img(image) if len(image) else ())
        shown = [[next(images) for _ in range(count)] for count in batch["image_counts"]]
        facts = batch.get("facts") or [{} for _ in numbers]
        asked: dict[_Kind, list[tuple[int, str]]] = {}
        for place, (number, text) in enumerate(zip(numbers, batch["text"], strict=True)):
            kind, prompt = self._asked(chat, text, len(shown[place]), number)
            kind = "choices" if facts[place].get("choices") and not self._question else kind
            asked.setdefault(kind, []).append((place, prompt))
        answers: dict[int, str] = {}
        for kind, found in asked.items():
            places, prompts = zip(*found, strict=True)
            pictures = [shown[place] for place in places]
            if kind == "choices":
                captions = [isinstance(batch["text"][place], str) for place in places]
                endings = [model.end_sym if own else ending(chat.template) for own in captions]
                choices = [facts[place]["choices"] for place in places]
                texts = chat.choose(prompts, pictures, choices, endings)
            else:
                stop = model.end_sym if kind == "caption" else chat.template.stop
                texts = chat.generate(prompts, pictures, stop, chat.options)
            answers |= zip(places, texts, strict=True)
        return [answers[place] for place in range(len(numbers))]

    def _asked(self, chat: Generator, text: Text, images: int, number: int) -> tuple[_Kind, str]:
        """Return what is asked for of a sample, and the prompt that asks."""
        if self._question is not None:
            asked = IMAGE_MARK * images + self._question
            text = (Turn("user", asked), Turn("assistant", ""))
        if not isinstance(text, str):
            plain = _plain(chat.model.tokenizer, chat.template)
            return "answer", open_prompt(text, chat.template, plain)
        prompt = self._prompts[number % len(self._prompts)] if self._prompts else None
        return "caption", _for_images(prompt, images)


def _for_images(prompt: str | None, count: int) -> str:
    """Return a stage's prompt for a sample of several images, all in the place of its one."""
    prompt = IMAGE_MARK if prompt is None else prompt  # stage 1: right after the bare image
    tagged = f"<Img>{IMAGE_MARK}</Img>"
    mark = tagged if tagged in prompt else IMAGE_MARK
    return prompt if count == 1 else prompt.replace(mark, mark * count, 1)


def _plain(tokenizer: Tokenizer, template: Template) -> Callable[[str], str]:
    """Return what takes controls from a text, as the chat does."""
    return partial(plain_text, controls=(*template.forbidden, *tokenizer.special))


def exchanges(
    turns: Sequence[Turn], template: Template, plain: Callable[[str], str]
) -> list[Exchange]:
    """Return every answer of a conversation with everything that is new before it.

    ``plain`` takes from a text what marks a speaker in the template.
    """
    found: list[Exchange] = []
    conversation = Conversation(template)
    begun = 0  # characters of the transcript that are in earlier exchanges
    for turn in turns:
        if turn.speaker == "assistant":
            prompt = conversation.prompt()[begun:]
            found.append(Exchange(prompt, plain(turn.text) + ending(template)))
        conversation = _said(conversation, turn, plain)
        if turn.speaker == "assistant":
            begun = len(conversation.transcript())
    return found


def ending(template: Template) -> str:
    """Return the taught end of an answer: its stop where the chat writes nothing there."""
    return template.behind_answer or next(iter(template.stops), "")


def open_prompt(turns: Sequence[Turn], template: Template, plain: Callable[[str], str]) -> str:
    """Return a conversation up to where its last answer begins, as a prompt."""
    conversation = Conversation(template)
    for turn in turns[:-1]:
        conversation = _said(conversation, turn, plain)
    return conversation.prompt()


def _said(conversation: Conversation, turn: Turn, plain: Callable[[str], str]) -> Conversation:
    """Return the conversation after a turn; a user's is, as in a chat, uploads, then words."""
    if turn.speaker == "assistant":
        conversation.answer(plain(turn.text))
        return conversation
    if turn.speaker == "system":
        template = replace(conversation.template, system=plain(turn.text))
        return Conversation(template, conversation.messages)
    first, *others = (plain(part).strip() for part in turn.text.split(IMAGE_MARK))
    words = [first] if first else []
    for part in others:
        if words:
            words.append(IMAGE_TEXT)
        else:  # before the first word
            conversation.add_image()
        if part:
            words.append(part)
    if words:
        conversation.ask(" ".join(words))
    return conversation
