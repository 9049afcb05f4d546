"""The trainer: draws batches, steps the optimizer, keeps checkpoints and a log."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.checkpoint import load_trained, load_weights
from minigpt4.checks import (
    ExistingFile,
    NotNegative,
    OutputFolder,
    Positive,
    PositiveFloat,
    check_not_negative,
)
from minigpt4.config import Config
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import CheckpointError, DataError, MiniGPT4Error
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.registry import LR_SCHEDULES, METRICS, RUNNERS, TASKS, Hidden
from minigpt4.runners.preparation import (
    Device,
    build_lr_schedule,
    epoch_length,
    parameter_groups,
    run_settings,
)
from minigpt4.runners.run_folder import RunFolder

logger = logging.getLogger(__name__)


@RUNNERS.register("runner_base")
class RunnerBase:
    """Trains the projection of one model on a mix of data sets.

    Args:
        model: With its frozen parts loaded.
        datasets: At least one.
        accelerator: Processes and device.
        config: Of the whole run; saved with it.
        task: Name of the task.
        init_lr: Peak learning rate.
        min_lr: Learning rate at the end.
        max_epoch: Number of epochs; an epoch ends with a checkpoint.
        output_dir: Where this run's folder is made.
        iters_per_epoch: Steps (micro-batches) per epoch; left out, once through a folder data set.
        batch_size_train: Samples per process and step; a data set's own batch_size goes before.
        lr_sched: Name of the schedule.
        warmup_lr: Learning rate of the first step; negative means ``init_lr``.
        warmup_steps: Steps of warm-up.
        lr_decay_rate: Factor per epoch of ``linear_warmup_step_lr``.
        weight_decay: Of parameters with two or more dimensions.
        accum_grad_iters: Steps per optimizer step.
        divide_accumulated_loss: False restores the original's undivided sum, for parity.
        max_grad_norm: Clip the gradient to this norm; off by default, as in the original.
        batch_size_eval: Samples per process and step of an evaluation.
        metrics: What an evaluation scores outputs with; averaged over the samples.
        num_workers: Worker processes per data set.
        seed: Of everything random.
        amp: False computes in fp32 on a GPU too.
        device: ``auto`` takes a GPU where there is one.
        resume_ckpt_path: Checkpoint of a run to go on with, from its next epoch.
        log_freq: Steps between lines in ``log.txt``.
        evaluate: True trains nothing: ``runners/evaluation.py`` goes once through the data sets.
    """

    def __init__(
        self,
        model: Annotated[MiniGPT4, Hidden],
        datasets: Annotated[Sequence[DataSet], Hidden],
        accelerator: Annotated[Accelerator, Hidden],
        config: Annotated[Config, Hidden],
        *,
        init_lr: PositiveFloat,
        min_lr: Annotated[float, check_not_negative],
        max_epoch: Positive,
        output_dir: OutputFolder,
        iters_per_epoch: Positive | None = None,
        batch_size_train: Positive | None = None,
        task: Annotated[str, TASKS] = "image_text_pretrain",
        lr_sched: Annotated[str, LR_SCHEDULES] = "linear_warmup_cosine_lr",
        warmup_lr: float = -1.0,
        warmup_steps: NotNegative = 0,
        lr_decay_rate: float | None = None,
        weight_decay: Annotated[float, check_not_negative] = 0.05,
        accum_grad_iters: Positive = 1,
        divide_accumulated_loss: bool = True,
        max_grad_norm: PositiveFloat | None = None,
        batch_size_eval: Positive = 16,
        metrics: tuple[Annotated[str, METRICS], ...] = ("exact_match",),
        num_workers: NotNegative = 4,
        seed: int = 42,
        amp: bool = True,
        device: Device = "auto",
        resume_ckpt_path: ExistingFile | None = None,
        log_freq: Positive = 50,
        evaluate: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.max_epoch = max_epoch
        self.samples = 0  # seen by this process
        self.accum_grad_iters = accum_grad_iters
        self.divide_accumulated_loss = divide_accumulated_loss
        self.max_grad_norm = max_grad_norm
        self.log_freq = log_freq
        settings = run_settings(config)
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.iters_per_epoch = epoch_length(settings, datasets, world_size)
        self.lr_schedule = build_lr_schedule(settings, self.iters_per_epoch)
        self.task = TASKS.build(task, {}, prompts=model.prompts, seed=seed, rank=rank)
        self.model = model
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, weight_decay), lr=init_lr, betas=(0.9, 0.999)
        )
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, enabled=model.compute_dtype == torch.float16
        )
        self.start_epoch = self._resume(resume_ckpt_path) if resume_ckpt_path else 0
        # A resumed run reads another stretch of the stream than the one it has read already.
        stream_seed = seed + 1_000_003 * self.start_epoch
        self.batches = iter(
            MixedLoader(
                datasets,
                batch_size_train,
                num_workers,
                stream_seed,
                rank,
                world_size,
                pin_memory=accelerator.device.type == "cuda",
            )
        )
        self.folder = self._make_folder(output_dir)
        self.wrapped = accelerator.prepare_model(model)

    def train(self) -> RunFolder:
        """All epochs; each ends with a checkpoint."""
        if self.accelerator.is_main_process:
            logger.info("what is trained:\n%s", parameter_table(self.model))
            logger.info("this run's folder: %s", self.folder.path)
        self.wrapped.train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self._train_epoch(epoch)
            self._save(epoch)
        self.accelerator.wait_for_everyone()
        return self.folder

    def _train_epoch(self, epoch: int) -> None:
        main = self.accelerator.is_main_process
        title = f"epoch {epoch + 1}/{self.max_epoch}"
        calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
        epoch_losses: list[float] = []
        with (
            logging_redirect_tqdm(),
            tqdm(total=self.iters_per_epoch, desc=title, disable=not main, mininterval=calm) as bar,
        ):
            losses: list[torch.Tensor] = []
            since, samples = time.monotonic(), self.samples
            for step in range(self.iters_per_epoch):
                lr = self._set_lr(epoch, step)
                losses.append(self._step(epoch, step))
                bar.update()
                if (step + 1) % self.log_freq and step + 1 != self.iters_per_epoch:
                    continue
                loss = self._mean_over_ranks(losses)
                count = (self.samples - samples) * self.accelerator.num_processes
                rate = count / max(time.monotonic() - since, 1e-9)
                text = f"loss {loss:.4f}, lr {lr:.2e}, {rate:.0f} samples/s"
                bar.set_postfix_str(text, refresh=False)
                self._report(epoch, step + 1, loss, lr, rate)
                epoch_losses += [loss] * len(losses)
                losses, since, samples = [], time.monotonic(), self.samples
        if main:
            mean = sum(epoch_losses) / len(epoch_losses)
            self.folder.log(epoch=epoch, train_loss=mean, train_lr=lr)
            logger.info("epoch %d/%d: mean loss %.4f", epoch + 1, self.max_epoch, mean)

    def _report(self, epoch: int, step: int, loss: float, lr: float, rate: float) -> None:
        """One line in the log; a loss that is no number ends the run."""
        if self.accelerator.is_main_process:
            figures = {"loss": loss, "lr": lr, "samples_per_second": round(rate, 2)}
            self.folder.log(epoch=epoch, step=step, **figures)
        if not math.isfinite(loss):
            raise MiniGPT4Error(
                f"the loss is {loss} at epoch {epoch}, step {step}; the last checkpoint is in "
                f"{self.folder.path}; try a lower run.init_lr, or model.precision: bf16"
            )

    def _step(self, epoch: int, step: int) -> torch.Tensor:
        """One micro-batch, and the optimizer's step where one is due; this rank's loss."""
        try:
            batch = next(self.batches)
        except DataError as error:
            error.rank_local = True
            raise
        self.samples += len(batch["text"])
        batch["image"] = batch["image"].to(self.accelerator.device, non_blocking=True)
        due = (step + 1) % self.accum_grad_iters == 0
        with nullcontext() if due else self.accelerator.no_sync(self.wrapped):
            position = epoch * self.iters_per_epoch + step
            loss: torch.Tensor = self.task.train_step(self.wrapped, batch, position)
            # Differs from the original: it does not divide under accumulation.
            share = self.accum_grad_iters if self.divide_accumulated_loss else 1
            self.scaler.scale(loss / share).backward()
        if due:
            if self.max_grad_norm is not None:
                self.scaler.unscale_(self.optimizer)
                trained = [p for p in self.model.parameters() if p.requires_grad]
                nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        return loss.detach()

    def _set_lr(self, epoch: int, step: int) -> float:
        lr = self.lr_schedule(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _mean_over_ranks(self, losses: list[torch.Tensor]) -> float:
        mean = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
        assert isinstance(mean, torch.Tensor)
        return mean.item()

    def _make_folder(self, output_dir: str) -> RunFolder:
        """The main process makes the folder; the others learn its name, or what went wrong."""
        result: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                result = [RunFolder.create(output_dir, self.config.resolved())]
            except MiniGPT4Error as error:
                result = [error]
        broadcast_object_list(result)
        if isinstance(result[0], MiniGPT4Error):
            raise result[0]
        assert isinstance(result[0], RunFolder)
        return result[0]

    def _save(self, epoch: int) -> None:
        """What is trained, and what an epoch-wise resume needs, in the original's structure."""
        if not self.accelerator.is_main_process:
            return
        trained = {
            name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad
        }
        path = self.folder.save_checkpoint(
            epoch,
            {
                "model": trained,
                "optimizer": self.optimizer.state_dict(),
                "config": self.config.resolved(),
                "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
                "epoch": epoch,
            },
        )
        logger.info("saved %s", path)

    def _resume(self, path: str) -> int:
        """Load weights and optimizer; the epoch to go on with."""
        checkpoint = load_weights(path)
        load_trained(self.model, checkpoint, path)
        try:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if self.scaler.is_enabled() and checkpoint.get("scaler"):
                self.scaler.load_state_dict(checkpoint["scaler"])
            epoch = int(checkpoint["epoch"]) + 1
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: holds no training state to resume ({error}); "
                "to start from its projection use model.ckpt"
            ) from error
        if epoch >= self.max_epoch:
            logger.warning("%s: its run has finished all %d epochs", path, self.max_epoch)
        return epoch
