"""The training loop of the tiny towers: Muon and AdamW under one cosine; a kill loses little.

A step's data and noise are a function of seed and step alone, so that a run that was interrupted
ends with the same bytes as one that was not.
"""

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from minigpt4.weights.checkpoint import load_weights, save_atomically

_WARM_UP = 100  # steps

logger = logging.getLogger(__name__)


def autocast() -> torch.autocast:
    """bf16 where the CPU computes in it (about four times faster), else fp32."""
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(fast))


def rng_of(seed: int, name: str, step: int) -> random.Random:
    """The random numbers of one step of one tower."""
    return random.Random(f"{seed}/{name}/{step}")


def optimise(
    name: str,
    modules: nn.Module,
    hidden: nn.Module,
    steps: int,
    loss_of: Callable[[int], torch.Tensor],
    progress: Path,
    save_every: int = 200,
    second_round: int = 0,
) -> None:
    """Train ``modules`` for ``steps`` calls of ``loss_of(step)``, going on from ``progress``.

    Args:
        name: In the log.
        modules: Everything that learns.
        hidden: The part whose matrices Muon takes: it learns in far fewer steps than AdamW alone.
        steps: Of the whole training.
        loss_of: The loss of a step, counted from 0.
        progress: File that keeps weights and optimizers; it stays when all is done.
        save_every: Steps between two saves.
        second_round: Steps after those, with a learning rate that rises again, half as high.
    """
    total = steps + second_round
    matrices = [p for p in hidden.parameters() if p.ndim == 2]
    others = [p for p in modules.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.02, betas=(0.9, 0.98)),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = 0
    if progress.is_file():
        state = load_weights(progress)
        first = state["step"]
        modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        logger.info("%s: goes on from step %d", name, first)
    started, losses = time.monotonic(), []
    for step in range(first, total):
        again = step >= steps
        rate = 0.5 * _cosine(step - steps, second_round) if again else _cosine(step, steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done % 100 == 0 or done == total:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - started
            logger.info("%s step %d/%d loss %.4f (%.0f s)", name, done, total, mean, seconds)
            losses = []
        if done % save_every == 0 or done == total:
            states = [optimizer.state_dict() for optimizer in optimizers]
            content = {"step": done, "modules": modules.state_dict(), "optimizers": states}
            save_atomically(content, progress)


def _cosine(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to 2 %."""
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return 0.51 + 0.49 * math.cos(math.pi * (step - _WARM_UP) / max(1, steps - _WARM_UP))
