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
from minigpt4.models.llm_input import Row, describe_row, row_segments, target_logits, target_loss
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import RunOptions
from minigpt4.tasks import Task

DEAD_SPREAD = 1e-3  # standard deviation of a dead model's logits over the vocabulary
_NEAR_CHANCE = 0.05  # of ln V
_KEYS_SHOWN = 3  # of a batch that went wrong; the file has all

logger = logging.getLogger(__name__)


@torch.no_grad()
def check_first_batch(model: MiniGPT4, batch: Batch, rows: Sequence[Row]) -> None:
    """Log what the model reads of the first sample; ``MiniGPT4Error`` if the model is dead."""
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
    """Return the first sample as the model reads it: text, images and target tokens."""
    count = batch["image_counts"][0]
    images = [*model.encode_img(batch["image"][:count])] if count else []
    limits = model.max_txt_len, model.most_positions
    segments = row_segments(model.tokenizer, rows[0], images, *limits)
    head = f"what the model reads of the first sample ({batch['keys'][0]}), by position:"
    return "\n".join([head, *describe_row(model.tokenizer, segments)])


def first_nonfinite(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Return the first module whose output has an Inf or NaN when ``forward`` runs, or None.

    Inner modules finish first, so the innermost one is reported.
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
    parts = [*output.values()] if isinstance(output, dict) else output
    return not isinstance(parts, Sequence) or isinstance(parts, str) or all(map(_is_finite, parts))


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch that was trained on: its number in the run, and this rank's loss."""

    number: int
    batch: Batch
    loss: torch.Tensor


class PendingStep:
    """A step of the optimizer that the device may still compute.

    Args:
        window: This process's micro-batches of the step.
        norm: Norm of its gradient.
        epoch: Epoch, from 0.
        step: Step within the epoch, from 0.
    """

    def __init__(
        self, window: Sequence[MicroBatch], norm: torch.Tensor, epoch: int, step: int
    ) -> None:
        self.window, self.epoch, self.step = window, epoch, step
        figures = torch.stack([*(done.loss for done in window), norm])
        self.known = not figures.is_cuda  # whether the figures are there already
        # To page-locked memory, without waiting for the copy.
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
    """Reports where a loss or gradient stopped being finite; ends the run or skips the step."""

    run: RunOptions
    path: Path  # JSON lines, one for each such micro-batch
    processes: Distributed
    model: MiniGPT4
    task: Task
    skipped: int = 0  # steps of the optimizer

    def handle(self, pending: PendingStep) -> None:
        """Report a step with a non-finite number in any process; all processes call it.

        Raises:
            MiniGPT4Error: with place and samples, if the run is to end.
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
        # Also with a broken image: all processes of a sharded model must run as often.
        module = first_nonfinite(model, lambda: task.train_step(model, done.batch, done.number))
        module = "the image processor" if broken else module
        loss = done.loss.item()
        shown = loss if math.isfinite(loss) else str(loss)  # JSON knows neither NaN nor infinity
        return {"loss": shown, "module": module, "keys": broken or keys}


def _keys_of_broken_images(batch: Batch) -> list[str]:
    found = zip(keys_of_images(batch), batch["image"], strict=True)
    return list(dict.fromkeys(key for key, image in found if not image.isfinite().all()))


def _in_words(found: Sequence[dict[str, Any]]) -> str:
    first = found[0]
    keys = ", ".join(first["keys"][:_KEYS_SHOWN])
    more = len(first["keys"]) - _KEYS_SHOWN
    where = f"epoch {first['epoch']}, step {first['step']}, rank {first['rank']}"
    if isinstance(first["loss"], str):
        what = f"the loss is {first['loss']} at {where}"
    else:
        what = f"the gradient is not finite at {where} (the loss is {first['loss']:.4g})"
    module = first["module"]
    source = f"it starts in {module}" if module else "every output of the forward pass is finite"
    return f"{what}; {source}; samples: {keys}{f' and {more} more' if more > 0 else ''}"
