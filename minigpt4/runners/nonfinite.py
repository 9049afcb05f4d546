"""Non-finite numbers: a dead model before the first step, Inf and NaN in a loss or gradient."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt4.datasets.samples import Batch, keys_of_images
from minigpt4.errors import MiniGPT4Error
from minigpt4.files import JsonLines
from minigpt4.models.llm_input import Row, describe_row, row_segments
from minigpt4.models.loss import target_logits, target_loss
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import RunOptions
from minigpt4.tasks import Task

# Logits that hardly differ over the vocabulary say nothing, whatever the input.
DEAD_SPREAD = 1e-3
_NEAR_CHANCE = 0.05  # of ln V
_KEYS_TOLD = 3  # of a batch that went wrong; the file has all

logger = logging.getLogger(__name__)


@torch.no_grad()
def check_first_batch(model: MiniGPT4, batch: Batch, rows: Sequence[Row]) -> None:
    """Tell what the model reads of the first sample, and compute the first batch's loss.

    Raises:
        MiniGPT4Error: when the model is dead or its inputs are.
    """
    spliced = model.splice_batch(batch["image"], rows)
    logits = model.logits(spliced)
    predicting, targets = target_logits(logits, spliced.targets)
    loss = target_loss(predicting, targets).item()
    # The median row: one odd position must not speak for all.
    spread = predicting.float().std(dim=-1).median().item()
    logger.info("%s", describe_sample(model, batch, rows))
    if not (math.isfinite(loss) and spread >= DEAD_SPREAD):
        module = first_nonfinite(
            model, lambda: model.logits(model.splice_batch(batch["image"], rows))
        )
        raise _dead_model(loss, spread, module)
    chance = math.log(logits.shape[-1])
    if abs(loss - chance) < _NEAR_CHANCE * chance:
        text = "the loss before the first step is %.3f, about ln V = %.3f: that of a model which "
        logger.info(text + "knows nothing; expected of random weights only", loss, chance)


def _dead_model(loss: float, spread: float, module: str | None) -> MiniGPT4Error:
    found = f"; the first output that is not finite is that of {module}" if module else ""
    return MiniGPT4Error(
        f"the LLM or its inputs are dead: before the first step the loss is {loss:.4g} and the "
        f"logits' standard deviation over the vocabulary {spread:.2g}{found}. The usual "
        "causes: language model weights that are all zero, half downloaded or a delta not yet "
        "applied (model.llama_model), a projection of a failed training (model.ckpt), or fp16 "
        "overflow (run.precision: bf16)"
    )


def describe_sample(model: MiniGPT4, batch: Batch, rows: Sequence[Row]) -> str:
    """The first sample as the model reads it: text, the images' places, and what is learnt."""
    count = batch["image_counts"][0]
    images = [*model.encode_img(batch["image"][:count])] if count else []
    segments = row_segments(
        model.tokenizer, rows[0], images, model.max_txt_len, model.most_positions
    )
    head = f"what the model reads of the first sample ({batch['keys'][0]}), by position:"
    return "\n".join([head, *describe_row(model.tokenizer, segments)])


def first_nonfinite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The first part whose output has an Inf or NaN when ``forward`` runs; None without one.

    The smallest modules finish first, so that it is they who are named.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and not _is_finite(output):
                found.append(name)

        return look

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] or "the loss") if found else None


def _is_finite(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return not output.is_floating_point() or bool(output.isfinite().all())
    if isinstance(output, dict):
        return all(map(_is_finite, output.values()))
    return (
        not isinstance(output, Sequence) or isinstance(output, str) or all(map(_is_finite, output))
    )


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch that was trained on: its number in the run, and this rank's loss."""

    number: int
    batch: Batch
    loss: torch.Tensor


class PendingStep:
    """A step of the optimizer that the device may still be at.

    Args:
        window: This process's micro-batches of it.
        norm: Of its gradient.
        epoch: From 0.
        step: Within the epoch, from 0.

    Attributes:
        known: Whether its figures are there already.
    """

    def __init__(
        self, window: Sequence[MicroBatch], norm: torch.Tensor, epoch: int, step: int
    ) -> None:
        self.window, self.epoch, self.step = window, epoch, step
        figures = torch.stack([*(done.loss for done in window), norm])
        self.known = not figures.is_cuda
        # To page-locked memory, which torch sees to; without waiting for the copy.
        self._figures = figures.to("cpu", non_blocking=figures.is_cuda)
        self._there = torch.cuda.Event() if figures.is_cuda else None
        if self._there:
            self._there.record()

    def figures(self) -> tuple[list[float], float]:
        """Losses of the micro-batches and norm of the gradient, once the device has them."""
        if self._there:
            self._there.synchronize()
        *losses, norm = self._figures.tolist()
        return losses, norm


@dataclass(eq=False)
class NonFiniteGuard:
    """Reports where a loss or gradient stopped being finite; ends the run or skips the step.

    Attributes:
        run: Options of the run.
        path: A JSON line for each such micro-batch is added to this file.
        processes: All processes of the run.
        model: The model.
        task: What a training step is.
        skipped: Steps of the optimizer left out so far.
    """

    run: RunOptions
    path: Path
    processes: Distributed
    model: MiniGPT4
    task: Task
    skipped: int = 0

    def handle(self, pending: PendingStep) -> None:
        """Report a step in which a process has met a number that is not finite; all come here.

        Raises:
            MiniGPT4Error: saying where and in which samples, if the run is to end.
        """
        window = pending.window
        at = {"epoch": pending.epoch, "step": pending.step + 1, "rank": self.processes.rank}
        own = [at | self._examine(done) for done in window]
        at_fault = [found for found in own if found["module"] is not None]
        if not at_fault and not all(done.loss.isfinite() for done in window):
            at_fault = own
        found = self.processes.gather(at_fault)
        # With every forward pass in order it was the backward pass, of whichever micro-batch.
        found = found or self.processes.gather(own)
        self.skipped += 1
        text = _in_words(found)
        if self.processes.main:
            JsonLines(self.path).append(*found)
        if self.run.on_nonfinite == "stop":
            raise MiniGPT4Error(
                f"{text}; all samples are in {self.path}. Try a lower run.init_lr, run.precision: "
                "bf16, or run.on_nonfinite: skip"
            )
        if self.skipped > self.run.max_nonfinite:
            raise MiniGPT4Error(
                f"{text}; this is step number {self.skipped} that would be left out, more than "
                f"run.max_nonfinite {self.run.max_nonfinite}; all are in {self.path}"
            )
        if self.processes.main:
            logger.warning("%s; the step is left out (%d so far)", text, self.skipped)

    def _examine(self, done: MicroBatch) -> dict[str, Any]:
        model, task, keys = self.model, self.task, done.batch["keys"]
        broken = _keys_of_broken_images(done.batch)
        # Also with a broken picture: where the model is shared out, all must run as often.
        module = first_nonfinite(model, lambda: task.train_step(model, done.batch, done.number))
        module = "the image processor" if broken else module
        loss = done.loss.item()
        told = loss if math.isfinite(loss) else str(loss)  # json knows neither NaN nor infinity
        return {"loss": told, "module": module, "keys": broken or keys}


def _keys_of_broken_images(batch: Batch) -> list[str]:
    found = zip(keys_of_images(batch), batch["image"], strict=True)
    return list(dict.fromkeys(key for key, image in found if not image.isfinite().all()))


def _in_words(found: Sequence[dict[str, Any]]) -> str:
    first = found[0]
    keys = ", ".join(first["keys"][:_KEYS_TOLD])
    more = len(first["keys"]) - _KEYS_TOLD
    where = f"epoch {first['epoch']}, step {first['step']}, rank {first['rank']}"
    if isinstance(first["loss"], str):
        what = f"the loss is {first['loss']} at {where}"
    else:
        what = f"the gradient is not finite at {where} (the loss is {first['loss']:.4g})"
    module = first["module"]
    source = f"it starts in {module}" if module else "every output of the forward pass is finite"
    return f"{what}; {source}; samples: {keys}{f' and {more} more' if more > 0 else ''}"
