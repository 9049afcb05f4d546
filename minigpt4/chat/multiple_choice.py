"""Multiple choice: the likeliest of a question's choices, without generating anything."""

from collections.abc import Sequence
from typing import Any

import torch

from minigpt4.chat.likelihood import ChoiceLikelihood, choice_likelihoods
from minigpt4.tasks import Generator


class Chosen(str):
    """The choice that is likeliest as a whole.

    Attributes:
        likelihoods: Of every choice.
    """

    likelihoods: list[ChoiceLikelihood]


def output_fields(output: str) -> dict[str, Any]:
    """What an evaluation keeps of an output: its text, and of a choice how likely all were."""
    if not isinstance(output, Chosen):
        return {"output": output}
    return {
        "output": str(output),
        "log_probabilities": [own.log_probability for own in output.likelihoods],
        "tokens": [own.tokens for own in output.likelihoods],
    }


def choose(
    chat: Generator,
    prompts: Sequence[str],
    images: Sequence[Sequence[torch.Tensor]],
    choices: Sequence[Sequence[str]],
    endings: Sequence[str],
) -> list[Chosen]:
    """For each prompt its likeliest choice; of equal ones the first.

    A choice counts with what the model was taught to end an answer with: it may be one token with
    the choice's last character, and tells a whole answer from the beginning of a longer one.

    Args:
        chat: Of the model.
        prompts: Texts with an ``<ImageHere>`` for each image.
        images: For each prompt its encoded images, ``[Q, H]`` each.
        choices: For each prompt at least one.
        endings: Of answers to each prompt.

    Raises:
        DataError: for a prompt and choice that the language model has no positions for.
    """
    chosen = []
    ended = [[choice + end for choice in own] for own, end in zip(choices, endings, strict=True)]
    told = choice_likelihoods(chat, prompts, images, ended)
    for own, likelihoods in zip(choices, told, strict=True):
        totals = [likelihood.log_probability for likelihood in likelihoods]
        choice = Chosen(own[totals.index(max(totals))])
        choice.likelihoods = likelihoods
        chosen.append(choice)
    return chosen
