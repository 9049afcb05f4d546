"""The trainer: draws batches, steps the optimizer, keeps states, checkpoints and a log."""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator

from minigpt4.assembly import (
    Device,
    build_template,
    epoch_length,
    run_settings,
)
from minigpt4.chat import generation_options
from minigpt4.config import Config
from minigpt4.config.checks import (
    NotNegative,
    OutputFolder,
    Positive,
    PositiveFloat,
    check_not_negative,
)
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, DataSet, to_device
from minigpt4.errors import CheckpointError, DataError, InterruptedRunError, one_line
from minigpt4.models.build import Precision
from minigpt4.models.minigpt4 import MiniGPT4, Packing, parameter_table
from minigpt4.models.speed.compiling import compile_layers
from minigpt4.models.speed.gradient_checkpointing import checkpoint_layers
from minigpt4.registry import LR_SCHEDULES, METRICS, RUNNERS, TASKS, Hidden
from minigpt4.runners.bad_samples import BadSampleLog
from minigpt4.runners.distributed import Processes, StopSignals
from minigpt4.runners.lr_schedules import build_lr_schedule
from minigpt4.runners.meter import Meter
from minigpt4.runners.nonfinite import NonFiniteGuard, Step, check_alive
from minigpt4.runners.optimizer import Optimization
from minigpt4.runners.resuming import Start, check_resumable, find_start
from minigpt4.runners.run_folder import RunFolder
from minigpt4.runners.run_log import RunLog
from minigpt4.runners.run_state import restore_rng, rng_state
from minigpt4.weights.checkpoint import load_trained

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
        valid_splits: ``[val]`` measures the model on what the data sets hold out (``val_storage``,
            ``val_fraction``): before the first step, and after every ``eval_every_steps``.
        eval_every_steps: Steps between two validations; left out, each epoch ends with one.
        valid_captions: Samples of each data set whose text is generated in a validation, always the
            same ones; ``metrics`` score them.
        valid_control: Validate also with each picture exchanged for another sample's: what the
            model knows without looking.
        best_metric: Whose best value keeps ``checkpoint_best.pth``: ``loss``, ``token_accuracy``,
            ``perplexity`` or one of ``metrics``, as the mean over the data sets, or of one as
            ``<data set>/loss``.
        best_mode: Whether the smallest or the largest is best; ``auto`` knows it of the program's
            own figures, and takes the largest of a plug-in's.
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
        valid_splits: tuple[Literal["val"], ...] = (),
        eval_every_steps: Positive | None = None,
        valid_captions: NotNegative = 8,
        valid_control: bool = False,
        best_metric: str = "loss",
        best_mode: Literal["auto", "min", "max"] = "auto",
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
        self.save_every_steps, self.keep_last = save_every_steps, keep_last
        self.log_freq = log_freq
        self.packing, self.compile = packing, compile
        self.gradient_checkpointing = gradient_checkpointing
        settings = run_settings(config)
        rank, world_size = accelerator.process_index, accelerator.num_processes
        self.iters_per_epoch = epoch_length(settings, datasets, world_size)
        self.lr_schedule = build_lr_schedule(settings, self.iters_per_epoch)
        shared = {"prompts": model.prompts, "seed": seed, "template": build_template(config)}
        self.task = TASKS.build(task, {}, rank=rank, **shared)
        self.processes = Processes(accelerator, timeout)
        self.signals = StopSignals()
        self.stop = 0  # the signal for which all processes have agreed to stop
        self.step = self.saved_step = 0  # micro-batches of the whole run; those that are saved
        self.losses: list[torch.Tensor] = []  # of this rank since the last line of the log
        self.epoch_loss, self.epoch_steps = 0.0, 0  # of the lines of this epoch

        total = max_epoch * self.iters_per_epoch
        start = find_start(accelerator, config, settings, self.iters_per_epoch, total)
        self.folder = start.folder
        self.guard = NonFiniteGuard(
            on_nonfinite, max_nonfinite, self.folder.path / "nonfinite.jsonl", self.processes
        )
        self.optimization = Optimization(
            model,
            self.task,
            self.processes,
            self.guard,
            self._agree,
            lr=init_lr,
            weight_decay=weight_decay,
            accumulated=accum_grad_iters,
            divided=divide_accumulated_loss,
            max_grad_norm=max_grad_norm,
        )
        self.eval_every_steps = eval_every_steps or self.iters_per_epoch
        from minigpt4.evaluation.validation import Validation

        self.validation: Validation | None = None
        if valid_splits:
            self.validation = Validation(
                datasets,
                TASKS.build(task, {}, rank=0, **shared),
                self.processes,
                self.folder.path,
                generation_options(config),
                batch_size=batch_size_eval,
                num_workers=num_workers,
                captions=valid_captions,
                control=valid_control,
                metrics=metrics,
                best_metric=best_metric,
                best_mode=best_mode,
            )
        data = self._restore(start) if start.state else None
        self.processes.start_equal(self.optimization.trained)
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
                if self.step < self.log.total_steps:
                    self._validate()
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
            self._validate()
            if last:
                self._end_epoch(epoch, lr)
            # Not between the micro-batches of one optimizer step.
            elif not self.optimization.window and (
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
        self.optimization.backward(loss)
        self.meter.count(len(batch["text"]), self.model.positions - positions)
        self.optimization.window.append(Step(number, batch, loss.detach()))
        if (step + 1) % self.accum_grad_iters == 0:
            self.optimization.update(epoch, step)
        return loss.detach()

    def _agree(self, broken: bool) -> bool:
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
        self.optimization.set_lr(lr)
        return lr

    def _report(self, epoch: int, step: int, lr: float) -> None:
        """One line in the log; what was left out as not finite is no part of the mean."""
        self.optimization.settle()
        losses = torch.stack(self.losses).float()
        finite = losses[losses.isfinite()]
        told = torch.stack([finite.sum(), torch.tensor(float(len(finite)), device=losses.device)])
        with self.processes.naming_the_lost():
            total, count = self.accelerator.reduce(told, reduction="sum").tolist()
        loss = total / count if count else math.nan
        self.epoch_loss += loss * len(losses) if count else 0.0
        self.epoch_steps += len(losses) if count else 0
        self.losses = []
        figures = {
            "loss": loss,
            "lr": lr,
            "grad_norm": self.optimization.grad_norm,
            **self.meter.read(),
        }
        if self.guard.skipped:
            figures["nonfinite_steps"] = self.guard.skipped
        if self.optimization.scaler_skips:
            figures["scaler_skips"] = self.optimization.scaler_skips
        self._collect_bad_samples()
        self.log.step(figures, epoch=epoch, step=step)
        self.meter.start()

    def _validate(self) -> None:
        """Measure the model on what is held out, where that is due and not done yet."""
        due = self.step % self.eval_every_steps == 0 or self.step == self.log.total_steps
        if self.validation is None or not due or self.validation.done_step == self.step:
            return
        self.optimization.settle()
        done = max(self.step - 1, 0)
        epoch, step = done // self.iters_per_epoch, done % self.iters_per_epoch + (self.step > 0)
        if self.accelerator.is_main_process:
            logger.info("validating after step %d", self.step)
        found = self.validation.run(self.model, epoch, step, lambda: self.signals.received > 0)
        if found is None:
            return  # a run that goes on begins with it
        self.validation.done_step = self.step
        self.log.validation(found, epoch=epoch, step=step)
        if self.validation.is_best(found, epoch, step) and self.accelerator.is_main_process:
            best = self.validation.best
            assert best is not None
            path = self.folder.save_best(asdict(best), self._checkpoint(epoch))
            logger.info("saved %s: the best %s so far, %.4g", path, best.metric, best.value)
        self.meter.start()

    def _end_epoch(self, epoch: int, lr: float) -> None:
        if self.optimization.window:  # an epoch's last micro-batches that fill no optimizer step
            self._agree(False)
        mean = self.epoch_loss / self.epoch_steps if self.epoch_steps else math.nan
        self.log.epoch({"train_loss": mean, "train_lr": lr}, epoch)
        self.epoch_loss, self.epoch_steps = 0.0, 0
        if self.accelerator.is_main_process:
            path = self.folder.save_checkpoint(epoch, self._checkpoint(epoch))
            logger.info("saved %s", path)
        self._save_state()

    def _collect_bad_samples(self) -> None:
        """The main process writes down what all have skipped."""
        found = self.processes.gather(self.loader.bad)
        self.loader.bad = []
        if self.accelerator.is_main_process:
            self.bad_samples.note(found)

    def _checkpoint(self, epoch: int) -> dict[str, Any]:
        """The model as users take it, in the original's structure."""
        return {
            "model": self._trained_weights(),
            **self.optimization.state(),
            "config": self.config.resolved(),
            "epoch": epoch,
        }

    def _trained_weights(self) -> dict[str, torch.Tensor]:
        """What is trained, as the original's checkpoints hold it."""
        named = self.model.named_parameters()
        return {name: p.detach().cpu() for name, p in named if p.requires_grad}

    def _save_state(self) -> None:
        """All that the next step depends on, of every process."""
        self.optimization.settle()
        own = {
            "rng": rng_state(self.accelerator.device),
            "data": self.loader.state(),
            "losses": [loss.item() for loss in self.losses],
            "gradients": self.optimization.gradients(),
        }
        self._collect_bad_samples()  # before the data position leaves them behind
        ranks = self.processes.gather([own])
        if self.accelerator.is_main_process:
            content = {
                "model": self._trained_weights(),
                **self.optimization.state(),
                "step": self.step,
                "epoch_loss": [self.epoch_loss, self.epoch_steps],
                "grad_norm": self.optimization.grad_norm,
                "skips": [self.guard.skipped, self.optimization.scaler_skips],
                "log_bytes": self.log.size,
                "validation": self.validation.state() if self.validation else None,
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
            self.optimization.restore(state)
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
        self.optimization.grad_norm = state["grad_norm"]
        self.guard.skipped, self.optimization.scaler_skips = state["skips"]
        # Of another run's folder: this one has no best yet, and validates where it begins.
        if self.validation and state.get("validation") and start.log_bytes:
            self.validation.restore(state["validation"])
        if len(ranks) != self.accelerator.num_processes:
            return dict(ranks[0]["data"])  # the loader says what that means
        own = ranks[rank]
        restore_rng(own["rng"], device)
        self.losses = [torch.tensor(loss, device=device) for loss in own["losses"]]
        self.optimization.restore_gradients(own["gradients"])
        return dict(own["data"])
