"""The task of both stages: predict an image's text."""

import random
from collections.abc import Sequence
from typing import Annotated

import torch

from minigpt4.chat import Chat
from minigpt4.datasets.samples import Batch, to_device
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.splice import IMAGE_MARK
from minigpt4.registry import TASKS, Hidden


@TASKS.register("image_text_pretrain")
class ImageTextPretrainTask:
    """Language modelling on the text of image-text pairs.

    Args:
        prompts: Stage-2 prompts; training draws one for each batch, an evaluation takes them in
            turn. None of them in stage 1.
        seed: Of the run.
        rank: This process; ranks draw on their own, as in the original.
    """

    def __init__(
        self,
        prompts: Annotated[list[str], Hidden],
        seed: Annotated[int, Hidden],
        rank: Annotated[int, Hidden],
    ) -> None:
        self._prompts = prompts
        self._identity = f"{seed}/prompt/{rank}"

    def prompt_of(self, step: int) -> str | None:
        """The prompt of a step (counted over the whole run); a function of seed, rank and step."""
        if not self._prompts:
            return None
        return random.Random(f"{self._identity}/{step}").choice(self._prompts)

    def train_step(self, model: MiniGPT4, batch: Batch, step: int) -> torch.Tensor:
        """Mean loss over the target tokens of one batch, as a loader gives it or on the device."""
        prompt = self.prompt_of(step)
        prompts = None if prompt is None else [prompt] * len(batch["text"])
        loss = model(to_device(batch, model.device)["image"], batch["text"], prompts)
        assert isinstance(loss, torch.Tensor)
        return loss

    @torch.no_grad()
    def evaluation_step(self, chat: Chat, batch: Batch, numbers: Sequence[int]) -> list[str]:
        """What the model says to each picture of a batch, asked in the form it was trained in.

        Args:
            chat: Of the model; its options say how to generate.
            batch: B samples, as a loader gives them or on the model's device.
            numbers: Place of each in its data set; sample ``i`` is asked with prompt ``i`` modulo
                their number.
        """
        model = chat.model
        images = model.encode_img(to_device(batch, model.device)["image"])
        prompts = self._prompts or [IMAGE_MARK]  # stage 1: right after the bare image
        asked = [prompts[number % len(prompts)] for number in numbers]
        return chat.generate(asked, [[image] for image in images], model.end_sym, chat.options)
