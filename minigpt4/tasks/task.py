"""Task: what one training step and one step of an evaluation are."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from minigpt4.conversation import Template
from minigpt4.conversation.options import GenerationOptions
from minigpt4.datasets.samples import Batch
from minigpt4.models.llm_input import Row
from minigpt4.models.minigpt4 import MiniGPT4


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
