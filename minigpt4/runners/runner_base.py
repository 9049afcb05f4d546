"""The trainer: draws batches, steps the optimizer, keeps states, checkpoints and a log."""

import itertools
import logging
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from minigpt4.checkpoint import load_trained
from minigpt4.checks import (
    NotNegative,
    OutputFolder,
    Positive,
    PositiveFloat,
    check_not_negative,
)
from minigpt4.config import Config
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, DataSet, to_device
from minigpt4.errors import CheckpointError, DataError, InterruptedRunError, one_line
from minigpt4.models.build import Precision
from minigpt4.models.compiling import compile_layers
from minigpt4.models.gradient_checkpointing import checkpoint_layers
from minigpt4.models.minigpt4 import MiniGPT4, Packing, parameter_table
from minigpt4.registry import LR_SCHEDULES, METRICS, RUNNERS, TASKS, Hidden
from minigpt4.runners.bad_samples import BadSampleLog
from minigpt4.runners.health import NonFiniteGuard, Step, Update, check_alive
from minigpt4.runners.meter import Meter
from minigpt4.runners.preparation import (
    Device,
    build_lr_schedule,
    build_template,
    epoch_length,
    parameter_groups,
    run_settings,
)
from minigpt4.runners.processes import Processes, StopSignals
from minigpt4.runners.resuming import Start, check_resumable, find_start
from minigpt4.runners.run_folder import RunFolder
from minigpt4.runners.run_log import RunLog
from minigpt4.runners.training_state import restore_rng, rng_state

logger = logging.getLogger(__name__)


def check_fraction(value: float) -> str | None:
    return None if 0 <= value <= 1 else f"{value} must lie between 0 and 1"


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
        precision: Arithmetic of the frozen parts; ``auto`` leaves it to ``model.precision``.
        shard: ``fsdp`` spreads the frozen language model over the processes.
        packing: Compute no padding; ``auto`` does so where a trial finds that no number changes.
        compile: Fuse the layers' kernels; the first steps are slow, later ones quicker on a GPU.
        gradient_checkpointing: Keep little of the language model's layers for the backward pass and
            compute them again there: for small memory, about 1.4 times as slow.
        device: ``auto`` takes a GPU where there is one.
        deterministic: Bit for bit the same numbers on a GPU too, for some speed.
        resume: ``auto`` goes on with the newest unfinished run of the same config, if there is one.
        resume_ckpt_path: What to go on with: a run's folder, which this run then continues; or a
            state or an epoch's checkpoint, from which it goes on in a folder of its own.
        save_every_steps: Steps between states to resume from; an epoch ends with one, too.
        keep_last: States that are kept; checkpoints of epochs always are.
        on_nonfinite: What to do when a loss or gradient is Inf or NaN: end the run, or leave out
            the optimizer's step.
        max_nonfinite: Steps left out after which the run ends nevertheless.
        max_bad_fraction: Share of a data set's latest samples that may be bad.
        timeout: Seconds without an answer after which another process counts as lost.
        trackers: ``tensorboard``, ``wandb``; beside ``log.txt``.
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
        precision: Precision = "auto",
        shard: Literal["none", "fsdp"] = "none",
        packing: Packing = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        device: Device = "auto",
        deterministic: bool = False,
        resume: Literal["auto", "never"] = "never",
        resume_ckpt_path: Annotated[str, check_resumable] | None = None,
        save_every_steps: Positive = 500,
        keep_last: Positive = 2,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        max_nonfinite: Positive = 100,
        max_bad_fraction: Annotated[float, check_fraction] = 0.5,
        timeout: PositiveFloat = 1800.0,
        trackers: tuple[Literal["tensorboard", "wandb"], ...] = (),
        log_freq: Positive = 50,
        evaluate: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.model = model
        self.max_epoch = max_epoch
        self.accum_grad_iters = accum_grad_iters
        self.divide_accumulated_loss = divide_accumulated_loss
        self.max_grad_norm = max_grad_norm
        self.save_every_steps, self.keep_last = save_every_steps, keep_last
        self.log_freq = log_freq
        self.packing, self.compile = packing, compile
        self.gradient_checkpointing = gradient_checkpointing
        settings = run_settings(config)
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.iters_per_epoch = epoch_length(settings, datasets, world_size)
        self.lr_schedule = build_lr_schedule(settings, self.iters_per_epoch)
        self.task = TASKS.build(
            task, {}, prompts=model.prompts, seed=seed, rank=rank, template=build_template(config)
        )
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, weight_decay), lr=init_lr, betas=(0.9, 0.999), fused=True
        )
        # Also where nothing is scaled: it leaves a step out that is not finite, on the device and
        # without the host's waiting for it.
        self.scales_loss = model.compute_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(
            accelerator.device.type, init_scale=2.0**16 if self.scales_loss else 1.0
        )
        self.processes = Processes(accelerator, timeout)
        self.signals = StopSignals()
        self.stop = 0  # the signal for which all processes have agreed to stop
        self.step = self.saved_step = 0  # micro-batches of the whole run; those that are saved
        self.losses: list[torch.Tensor] = []  # of this rank since the last line of the log
        self.epoch_loss, self.epoch_steps = 0.0, 0  # of the lines of this epoch
        self.window: list[Step] = []  # since the last step of the optimizer
        self.unsettled: Update | None = None  # that step, until it is known to be finite
        self.grad_norm = math.nan
        self.scaler_skips = 0

        total = max_epoch * self.iters_per_epoch
        start = find_start(accelerator, config, settings, self.iters_per_epoch, total)
        self.folder = start.folder
        self.guard = NonFiniteGuard(
            on_nonfinite, max_nonfinite, self.folder.path / "nonfinite.jsonl", self.processes
        )
        data = self._restore(start) if start.state else None
        self.processes.start_equal(self.trained)
        self.loader = MixedLoader(
            datasets,
            batch_size_train,
            num_workers,
            # Where nothing is known of the data that a run has read, it goes on with others.
            seed if data else seed + 1_000_003 * self.step // self.iters_per_epoch,
            rank,
            world_size,
            pin_memory=accelerator.device.type == "cuda",
            max_bad_fraction=max_bad_fraction,
            state=data,
        )
        self.batches = iter(self.loader)
        self.bad_samples = BadSampleLog(self.folder.path / "bad_samples.jsonl")
        self.loader.bad += [(d.name, bad) for d in datasets for bad in d.missing if rank == 0]
        self.log = RunLog(
            self.folder.path,
            total_steps=total,
            steps_per_epoch=self.iters_per_epoch,
            first_step=self.step,
            trackers=trackers,
            run_name=self.folder.path.name,
            config=config.resolved(),
            main=accelerator.is_main_process,
        )
        self.log.truncate(start.log_bytes)
        self.meter = Meter(
            total_steps=total,
            first_step=self.step,
            processes=world_size,
            device=accelerator.device,
        )

    def train(self) -> RunFolder:
        """All epochs; each ends with a checkpoint.

        Raises:
            InterruptedRunError: after SIGTERM or Ctrl-C, with everything saved.
            MiniGPT4Error: for a dead model, a loss or gradient that is not finite, data that
                cannot be read, a process that does not answer.
        """
        if self.accelerator.is_main_process:
            logger.info("what is trained:\n%s", parameter_table(self.model))
            logger.info("this run's folder: %s", self.folder.path)
        self.model.train()
        try:
            with self.signals, self.log:
                if self.step < self.max_epoch * self.iters_per_epoch:
                    self._check_alive()
                    if fault := self.model.choose_packing(self.packing):
                        logger.info("run.packing: auto leaves this model padded: %s", fault)
                    if self.gradient_checkpointing:
                        checkpoint_layers(self.model)
                    if self.compile:
                        compile_layers(self.model)
                self.meter.start()
                for epoch in range(self.step // self.iters_per_epoch, self.max_epoch):
                    self._train_epoch(epoch)
        finally:
            self.loader.close()
            self.folder.unlock()
        if self.bad_samples.summary():
            logger.warning("%s", self.bad_samples.summary())
        with self.processes.naming_the_lost():
            self.accelerator.wait_for_everyone()
        return self.folder

    def _train_epoch(self, epoch: int) -> None:
        for step in range(self.step % self.iters_per_epoch, self.iters_per_epoch):
            lr = self._set_lr(epoch, step)
            self.losses.append(self._step(epoch, step))
            self.step += 1
            last = step + 1 == self.iters_per_epoch
            self.log.advance()
            if last or (step + 1) % self.log_freq == 0:
                self._report(epoch, step + 1, lr)
            if last:
                self._end_epoch(epoch, lr)
            # Not between the micro-batches of one optimizer step.
            elif not self.window and (
                self.stop or self.step - self.saved_step >= self.save_every_steps
            ):
                self._save_state()
            if self.stop and self.saved_step == self.step < self.log.total_steps:
                raise InterruptedRunError(self.stop, self.step, self.folder.path)

    def _step(self, epoch: int, step: int) -> torch.Tensor:
        """One micro-batch, and the optimizer's step where one is due; this rank's loss."""
        with self.meter.waiting():
            batch = self._next_batch()
        positions = self.model.positions
        number = epoch * self.iters_per_epoch + step
        try:
            loss: torch.Tensor = self.task.train_step(self.model, batch, number)
        except DataError as error:
            error.rank_local = True
            raise
        # Differs from the original: it does not divide under accumulation.
        share = self.accum_grad_iters if self.divide_accumulated_loss else 1
        # Times one; but Inf or NaN in the loss must reach the gradient, which the scaler looks at.
        self.scaler.scale(loss / share * (1 + 0 * loss.detach())).backward()
        self.meter.count(len(batch["text"]), self.model.positions - positions)
        self.window.append(Step(number, batch, loss.detach()))
        if (step + 1) % self.accum_grad_iters == 0:
            self._update(epoch, step)
        return loss.detach()

    def _update(self, epoch: int, step: int) -> None:
        """One step of the optimizer on the mean gradient of all processes.

        The device leaves it out where that is not finite. Whether it did, a GPU's host learns when
        the GPU is busy with the next step: to wait for it would let it stand idle.
        """
        if self.unsettled:
            self._settle()
        else:  # a lost process is named here: the averaging would wait for it much longer
            self._agree()
        window, self.window = self.window, []
        self.processes.average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.scales_loss else 1.0)
        self.optimizer.zero_grad()
        self.unsettled = Update(window, norm, epoch, step)
        if self.unsettled.known:
            self._settle()

    def _settle(self) -> None:
        """Learn whether the last step of the optimizer was finite; all processes do so together."""
        update, self.unsettled = self.unsettled, None
        if update is None:
            return
        losses, norm = update.figures()
        # The scaler tries large factors: a gradient that overflows is then no fault.
        numbers = losses if self.scales_loss else [*losses, norm]
        if self._agree(broken=not all(map(math.isfinite, numbers))):
            self.guard.handle(self.model, self.task, update.window, update.epoch, update.step)
        elif math.isfinite(norm):
            self.grad_norm = norm
        else:
            self.scaler_skips += 1

    def _agree(self, broken: bool = False) -> bool:
        """Whether anything is broken in any process; also whether one was told to stop."""
        told = [self.stop or self.signals.received, int(broken)]
        self.stop, any_broken = self.processes.largest(told)
        return bool(any_broken)

    def _next_batch(self) -> Batch:
        try:
            batch = next(self.batches)
        except DataError as error:
            error.rank_local = True
            self.bad_samples.note(self.loader.bad)  # alone: the others do not know of it
            raise
        return to_device(batch, self.accelerator.device)

    def _check_alive(self) -> None:
        """Hold the first batch, which is trained on afterwards, against a dead model."""
        first = self._next_batch()
        self.batches = itertools.chain([first], self.batches)
        with torch.random.fork_rng():
            check_alive(self.model, first, self.task.rows(self.model, first, self.step))

    def _set_lr(self, epoch: int, step: int) -> float:
        lr = self.lr_schedule(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _report(self, epoch: int, step: int, lr: float) -> None:
        """One line in the log; what was left out as not finite is no part of the mean."""
        self._settle()
        losses = torch.stack(self.losses).float()
        finite = losses[losses.isfinite()]
        told = torch.stack([finite.sum(), torch.tensor(float(len(finite)), device=losses.device)])
        with self.processes.naming_the_lost():
            total, count = self.accelerator.reduce(told, reduction="sum").tolist()
        loss = total / count if count else math.nan
        self.epoch_loss += loss * len(losses) if count else 0.0
        self.epoch_steps += len(losses) if count else 0
        self.losses = []
        figures = {"loss": loss, "lr": lr, "grad_norm": self.grad_norm, **self.meter.read()}
        if self.guard.skipped:
            figures["nonfinite_steps"] = self.guard.skipped
        if self.scaler_skips:
            figures["scaler_skips"] = self.scaler_skips
        self._collect_bad_samples()
        self.log.step(figures, epoch=epoch, step=step)
        self.meter.start()

    def _end_epoch(self, epoch: int, lr: float) -> None:
        if self.window:  # an epoch's last micro-batches that fill no optimizer step
            self._agree()
        mean = self.epoch_loss / self.epoch_steps if self.epoch_steps else math.nan
        self.log.epoch({"train_loss": mean, "train_lr": lr}, epoch)
        self.epoch_loss, self.epoch_steps = 0.0, 0
        if self.accelerator.is_main_process:
            path = self.folder.save_checkpoint(
                epoch,
                {
                    "model": self._trained_weights(),
                    "optimizer": self.optimizer.state_dict(),
                    "config": self.config.resolved(),
                    "scaler": self.scaler.state_dict() if self.scales_loss else None,
                    "epoch": epoch,
                },
            )
            logger.info("saved %s", path)
        self._save_state()

    def _collect_bad_samples(self) -> None:
        """The main process writes down what all have skipped."""
        found = self.processes.gather(self.loader.bad)
        self.loader.bad = []
        if self.accelerator.is_main_process:
            self.bad_samples.note(found)

    def _trained_weights(self) -> dict[str, torch.Tensor]:
        """What is trained, as the original's checkpoints hold it."""
        named = self.model.named_parameters()
        return {name: p.detach().cpu() for name, p in named if p.requires_grad}

    def _save_state(self) -> None:
        """All that the next step depends on, of every process."""
        self._settle()
        pending = [p.grad for p in self.trained] if self.window else None
        own = {
            "rng": rng_state(self.accelerator.device),
            "data": self.loader.state(),
            "losses": [loss.item() for loss in self.losses],
            "gradients": pending,
        }
        self._collect_bad_samples()  # before the data position leaves them behind
        ranks = self.processes.gather([own])
        if self.accelerator.is_main_process:
            content = {
                "model": self._trained_weights(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scales_loss else None,
                "step": self.step,
                "epoch_loss": [self.epoch_loss, self.epoch_steps],
                "grad_norm": self.grad_norm,
                "skips": [self.guard.skipped, self.scaler_skips],
                "log_bytes": self.log.size,
                "ranks": ranks,
            }
            self.folder.save_state(self.step, content, self.keep_last)
        self.saved_step = self.step
        self.meter.start()

    def _restore(self, start: Start) -> dict[str, Any] | None:
        """Take up a state; where this process's data stood, if the state tells."""
        state, device = start.state, self.accelerator.device
        assert state is not None
        load_trained(self.model, state, start.origin)
        try:
            saved = state["optimizer"]
            # Of whatever program: ours is fused, and keeps its count of steps on the device.
            groups = [group | {"fused": True} for group in saved["param_groups"]]
            self.optimizer.load_state_dict({**saved, "param_groups": groups})
            if self.scales_loss and state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{start.origin}: its optimizer's state does not fit this run ({one_line(error)}); "
                "to start from its projection alone use model.ckpt"
            ) from error
        self.step = self.saved_step = state["step"]
        if "ranks" not in state:
            return None
        ranks, rank = state["ranks"], self.accelerator.process_index
        self.epoch_loss, self.epoch_steps = state["epoch_loss"]
        self.grad_norm = state["grad_norm"]
        self.guard.skipped, self.scaler_skips = state["skips"]
        if len(ranks) != self.accelerator.num_processes:
            return dict(ranks[0]["data"])  # the loader says what that means
        own = ranks[rank]
        restore_rng(own["rng"], device)
        self.losses = [torch.tensor(loss, device=device) for loss in own["losses"]]
        if own["gradients"]:
            for parameter, gradient in zip(self.trained, own["gradients"], strict=True):
                parameter.grad = None if gradient is None else gradient.to(device)
        return dict(own["data"])
