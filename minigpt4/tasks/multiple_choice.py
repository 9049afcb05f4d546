"""Multiple choice: the likeliest of a question's choices, without generating anything."""

from collections.abc import Sequence

import torch

from minigpt4.chat import Chat
from minigpt4.chat.likelihood import ChoiceLikelihood, choice_likelihoods


class Chosen(str):
    """The choice that is likeliest as a whole.

    Attributes:
        likelihoods: Of every choice.
    """

    likelihoods: list[ChoiceLikelihood]


def choose(
    chat: Chat,
    prompts: Sequence[str],
    images: Sequence[Sequence[torch.Tensor]],
    choices: Sequence[Sequence[str]],
) -> list[Chosen]:
    """For each prompt its likeliest choice; of equal ones the first.

    Args:
        chat: Of the model.
        prompts: Texts with an ``<ImageHere>`` for each image.
        images: For each prompt its encoded images, ``[Q, H]`` each.
        choices: For each prompt at least one.

    Raises:
        DataError: for a prompt and choice that the language model has no positions for.
    """
    chosen = []
    told = choice_likelihoods(chat, prompts, images, choices)
    for own, likelihoods in zip(choices, told, strict=True):
        totals = [likelihood.log_probability for likelihood in likelihoods]
        choice = Chosen(own[totals.index(max(totals))])
        choice.likelihoods = likelihoods
        chosen.append(choice)
    return chosen
