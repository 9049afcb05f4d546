"""Loss: cross-entropy of target tokens; training, validation, first-batch check and likelihood."""

import torch
from torch.nn import functional

from minigpt4.models.llm_input import IGNORED


def target_loss(
    logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Return the cross-entropy of logits ``[n, V]`` with the target tokens ``[n]``, in fp32.

    Args:
        logits: In any dtype.
        targets: Token ids; those that are -100 count as 0.
        reduction: ``mean``, ``sum`` or ``none``, as in torch.
    """
    return functional.cross_entropy(
        logits.float(), targets, reduction=reduction, ignore_index=IGNORED
    )


def target_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits ``[n, V]`` that predict the n targets not ignored, and these ``[n]``.

    Args:
        logits: ``[B, S, V]``.
        targets: The token id to predict *at* a position, -100 elsewhere: ``[B, S]``.
    """
    following = targets[:, 1:]
    predicted = following != IGNORED
    return logits[:, :-1][predicted], following[predicted]
