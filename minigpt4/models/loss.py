"""Loss: cross-entropy of target tokens; training, validation, first-batch check and likelihood."""

import torch
from torch.nn import functional

from minigpt4.models.llm_input import IGNORED


def target_loss(
    logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Return the cross-entropy, in fp32, of logits ``[n, V]`` with ids ``[n]``; -100 count as 0."""
    return functional.cross_entropy(
        logits.float(), targets, reduction=reduction, ignore_index=IGNORED
    )


def target_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits ``[n, V]`` that predict the n targets not ignored, and these ``[n]``.

    Of ``[B, S, V]`` and the ids to predict *at* each position, ``[B, S]``, -100 where none is.
    """
    following = targets[:, 1:]
    predicted = following != IGNORED
    return logits[:, :-1][predicted], following[predicted]
