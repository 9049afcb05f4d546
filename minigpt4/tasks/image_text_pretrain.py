"""The task of both stages: predict an image's text, or the answers of a conversation about it."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch

from minigpt4.conversation import TEMPLATES, Template, plain_text
from minigpt4.datasets.samples import Batch, Text, Turn, to_device
from minigpt4.models.llm_input import IMAGE_MARK, Row, stage_rows
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.registry import TASKS, Hidden
from minigpt4.tasks.dialogue import ending, exchanges, open_prompt
from minigpt4.tasks.task import Generator

_Kind = Literal["caption", "answer", "choices"]  # of what is asked for


@TASKS.register("image_text_pretrain")
class ImageTextPretrainTask:
    """Language modelling on the text of image-text pairs.

    Captions are learnt as each stage has them; of a conversation the assistant's words, everything
    around them being what the chat writes.

    Args:
        prompts: Stage-2 prompts; training draws one for each batch, an evaluation takes them in
            turn. None of them in stage 1.
        seed: Of the run.
        rank: This process; ranks draw on their own, as in the original.
        template: Of conversations.
        question: Asked of every sample of an evaluation as a user does, whatever its text.
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
        """The prompt of a step (counted over the whole run); a function of seed, rank and step."""
        if not self._prompts:
            return None
        return random.Random(f"{self._identity}/{step}").choice(self._prompts)

    def rows(self, model: MiniGPT4, batch: Batch, step: int) -> list[Row]:
        """What the model reads and learns of each sample of a batch."""
        texts = zip(batch["text"], batch["image_counts"], strict=True)
        return [self.row(*text, step, model.tokenizer, model.end_sym) for text in texts]

    def row(self, text: Text, images: int, step: int, tokenizer: Tokenizer, end_sym: str) -> Row:
        """What is read and learnt of one sample.

        Args:
            text: Its caption or conversation.
            images: How many it has.
            step: Counted over the whole run.
            tokenizer: The language model's; nobody can say its special tokens.
            end_sym: Put behind a caption.
        """
        if isinstance(text, str):
            return stage_rows([text], [_for_images(self.prompt_of(step), images)], end_sym)[0]
        return exchanges(text, self._template, _plain(tokenizer, self._template))

    def train_step(self, model: MiniGPT4, batch: Batch, step: int) -> torch.Tensor:
        """Mean loss over the target tokens of one batch, as a loader gives it or on the device."""
        loss = model(to_device(batch, model.device)["image"], self.rows(model, batch, step))
        assert isinstance(loss, torch.Tensor)
        return loss

    @torch.no_grad()
    def evaluation_step(self, chat: Generator, batch: Batch, numbers: Sequence[int]) -> list[str]:
        """What the model says to each sample of a batch, asked in the form it was trained in.

        Of a sample with choices it is the likeliest one, which tells how likely each was.

        Args:
            chat: Of the model; its options say how to generate.
            batch: B samples, as a loader gives them or on the model's device.
            numbers: Place of each in its data set; a caption of number ``i`` is asked for with
                prompt ``i`` modulo their number, of a conversation the last answer.
        """
        model = chat.model
        image = to_device(batch, model.device)["image"]
        images = iter(model.encode_img(image) if len(image) else ())
        shown = [[next(images) for _ in range(count)] for count in batch["image_counts"]]
        facts = batch.get("facts") or [{} for _ in numbers]
        asked: dict[_Kind, list[tuple[int, str]]] = {}
        for place, (number, text) in enumerate(zip(numbers, batch["text"], strict=True)):
            kind, prompt = self._asked(chat, text, batch["image_counts"][place], number)
            kind = "choices" if facts[place].get("choices") and not self._question else kind
            asked.setdefault(kind, []).append((place, prompt))
        answers: dict[int, str] = {}
        for kind, found in asked.items():
            places, prompts = zip(*found, strict=True)
            pictures = [shown[place] for place in places]
            texts: Sequence[str]
            if kind == "choices":
                choices = [facts[place]["choices"] for place in places]
                endings = [self._ending(chat, batch["text"][place]) for place in places]
                texts = chat.choose(prompts, pictures, choices, endings)
            else:
                stop = model.end_sym if kind == "caption" else chat.template.stop
                texts = chat.generate(prompts, pictures, stop, chat.options)
            answers |= zip(places, texts, strict=True)
        return [answers[place] for place in range(len(numbers))]

    def _ending(self, chat: Generator, text: Text) -> str:
        """What an answer of a sample's form was taught to end with."""
        return chat.model.end_sym if isinstance(text, str) else ending(chat.template)

    def _asked(self, chat: Generator, text: Text, images: int, number: int) -> tuple[_Kind, str]:
        """What is asked for of a sample, and the prompt that asks."""
        plain = _plain(chat.model.tokenizer, chat.template)
        if self._question is not None:
            asked = IMAGE_MARK * images + self._question
            text = (Turn("user", asked), Turn("assistant", ""))
        if not isinstance(text, str):
            return "answer", open_prompt(text, chat.template, plain)
        prompt = self._prompts[number % len(self._prompts)] if self._prompts else None
        return "caption", _for_images(prompt, images)


def _for_images(prompt: str | None, count: int) -> str:
    """A stage's prompt for a sample of several images: all stand where it has its one."""
    prompt = IMAGE_MARK if prompt is None else prompt  # stage 1: right after the bare image
    tagged = f"<Img>{IMAGE_MARK}</Img>"
    mark = tagged if tagged in prompt else IMAGE_MARK
    return prompt if count == 1 else prompt.replace(mark, mark * count, 1)


def _plain(tokenizer: Tokenizer, template: Template) -> Callable[[str], str]:
    """What takes controls from a text, as the chat does."""
    return partial(plain_text, controls=(*template.forbidden, *tokenizer.special))
