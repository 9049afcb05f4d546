"""The trainer: takes batches, steps the optimizer, keeps states, checkpoints and a log."""

import itertools
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import torch

from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, to_device
from minigpt4.errors import CheckpointError, DataError, InterruptedRunError, one_line
from minigpt4.models.minigpt4 import MiniGPT4, parameter_table
from minigpt4.registry import RUNNERS, Hidden, Section
from minigpt4.runners.bad_samples import BadSampleLog
from minigpt4.runners.distributed import Distributed, StopSignals
from minigpt4.runners.lr_schedules import LRSchedule
from minigpt4.runners.nonfinite import MicroBatch, check_first_batch
from minigpt4.runners.optimizer import OptimizerStep
from minigpt4.runners.options import RunOptions
from minigpt4.runners.resuming import RandomState, ResumePoint, RunningLoss, Stateful
from minigpt4.runners.run_folder import RunFolder
from minigpt4.runners.run_log import Meter, RunLog
from minigpt4.tasks import Task
from minigpt4.weights.checkpoint import load_trained

logger = logging.getLogger(__name__)


class Validated(NamedTuple):
    """Result of a validation."""

    figures: dict[str, dict[str, float]]  # data set → figure → value
    best: dict[str, Any] | None  # content of ``best.json``, if this is the best validation


class Validator(Stateful, Protocol):
    """Measures the model on the validation set."""

    done_step: int  # step of the latest validation; -1 before

    def run(
        self, model: MiniGPT4, epoch: int, step: int, stopped: Callable[[], bool]
    ) -> Validated | None:
        """Return the figures; None where a signal stopped the run."""


@RUNNERS.register("runner_base")
@dataclass(eq=False)
class Trainer:
    """Trains a model on batches of a mix of data sets.

    :func:`minigpt4.assembly.build_runner` makes its parts. A step is one micro-batch; the
    resolved ``config`` is saved with each checkpoint.
    """

    options: Annotated[RunOptions, Section]
    model: Annotated[MiniGPT4, Hidden]
    task: Annotated[Task, Hidden]
    loader: Annotated[MixedLoader, Hidden]
    optimizer: Annotated[OptimizerStep, Hidden]
    schedule: Annotated[LRSchedule, Hidden]
    iters_per_epoch: Annotated[int, Hidden]
    processes: Annotated[Distributed, Hidden]
    stop: Annotated[StopSignals, Hidden]
    start: Annotated[ResumePoint, Hidden]
    log: Annotated[RunLog, Hidden]
    meter: Annotated[Meter, Hidden]
    bad_samples: Annotated[BadSampleLog, Hidden]
    validation: Annotated[Validator | None, Hidden]
    config: Annotated[dict[str, Any], Hidden]

    def __post_init__(self) -> None:
        self.folder = self.start.folder
        self.total_steps = self.options.max_epoch * self.iters_per_epoch
        self.step = self.saved_step = 0  # of the whole run
        self.losses, random = RunningLoss(self.processes), RandomState(self.processes.device)
        self.epoch_loss, self.epoch_steps = 0.0, 0  # over the log's lines of this epoch
        # What the next step depends on: the same in all processes, and each one's own.
        self.shared: list[Stateful] = [self, self.optimizer, self.log]
        self.shared += [self.validation] if self.validation else []
        self.own: list[Stateful] = [random, self.loader, self.losses, self.optimizer.gradients]
        if self.start.state is None:
            self.log.truncate(0)
        else:
            self._restore(self.start, self.start.state)
        if self.processes.count > 1:
            self.processes.broadcast_parameters(self.optimizer.trained)
        self.batches = iter(self.loader)

    def train(self) -> RunFolder:
        """Train all epochs; SIGTERM and Ctrl-C save first and raise ``InterruptedRunError``."""
        if self.processes.main:
            logger.info("what is trained:\n%s", parameter_table(self.model))
            logger.info("this run's folder: %s", self.folder.path)
        self.model.train()
        try:
            with self.stop, self.log:
                if self.step < self.total_steps:
                    self._prepare_model()
                    if self.validation is not None:
                        self._validate(self.validation)
                self.meter.start()
                while self.step < self.total_steps:
                    self.train_step(*divmod(self.step, self.iters_per_epoch))
        except DataError as error:  # the other processes do not know of it
            error.rank_local = True
            self.bad_samples.add(self.loader.take_bad())
            raise
        finally:
            self.loader.close()
            self.folder.unlock()
        if summary := self.bad_samples.summary():
            logger.warning("%s", summary)
        self.processes.wait()
        return self.folder

    def _prepare_model(self) -> None:
        """Check the model on the first batch, which is trained on afterwards; speed it up."""
        first = self._next_batch()
        self.batches = itertools.chain([first], self.batches)
        with torch.random.fork_rng():
            check_first_batch(self.model, first, self.task.rows(self.model, first, self.step))
        if fault := self.model.choose_packing(self.options.packing):
            logger.info("run.packing: auto leaves this model padded: %s", fault)
        if self.options.gradient_checkpointing or self.options.compile:
            self._change_layers()

    def _change_layers(self) -> None:
        if self.options.gradient_checkpointing:
            from minigpt4.models.speed.gradient_checkpointing import checkpoint_layers

            checkpoint_layers(self.model)
        if self.options.compile:
            from minigpt4.models.speed.compiling import compile_layers

            compile_layers(self.model)

    def train_step(self, epoch: int, step: int) -> None:
        """Train on one micro-batch, and do what is due after it."""
        lr = self.schedule(epoch, step)
        self.optimizer.set_lr(lr)
        self.losses.add(self._forward_backward())
        if (step + 1) % self.options.accum_grad_iters == 0:
            self.optimizer.step(epoch, step)
        self.step += 1
        last = step + 1 == self.iters_per_epoch
        self.log.advance()
        if last or (step + 1) % self.options.log_freq == 0:
            self._report(epoch, step + 1, lr)
        if self.validation is not None:
            self._validate(self.validation)
        if last:
            self._end_epoch(epoch, lr)
        # Not between the micro-batches of one optimizer step.
        elif not self.optimizer.window and (
            self.stop.agreed or self.step - self.saved_step >= self.options.save_every_steps
        ):
            self._save_state()
        if self.stop.agreed and self.saved_step == self.step < self.total_steps:
            raise InterruptedRunError(self.stop.agreed, self.step, self.folder.path)

    def _forward_backward(self) -> torch.Tensor:
        """Return this rank's loss of the next batch, its gradient added."""
        with self.meter.waiting():
            batch = self._next_batch()
        loss = self.task.train_step(self.model, batch, self.step)
        self.optimizer.backward(loss, MicroBatch(self.step, batch, loss.detach()))
        self.meter.count(len(batch["text"]), self.model.batch_positions)
        return loss.detach()

    def _next_batch(self) -> Batch:
        return to_device(next(self.batches), self.processes.device)

    def _report(self, epoch: int, step: int, lr: float) -> None:
        """Write one line of the log; losses of left-out steps are not part of the mean."""
        self.optimizer.check_pending_step()
        loss, count = self.losses.take_mean()
        if math.isfinite(loss):
            self.epoch_loss += loss * count
            self.epoch_steps += count
        figures = {"loss": loss, "lr": lr, "grad_norm": self.optimizer.grad_norm}
        figures |= {**self.meter.read(), **self.optimizer.skipped_steps()}
        self.bad_samples.collect(self.loader.take_bad())
        self.log.step(figures, epoch=epoch, step=step)
        self.meter.start()

    def _validate(self, validation: Validator) -> None:
        """Measure the model on the validation set, where that is due and not done yet."""
        every = self.options.eval_every_steps or self.iters_per_epoch
        due = self.step % every == 0 or self.step == self.total_steps
        if not due or validation.done_step == self.step:
            return
        self.optimizer.check_pending_step()
        epoch, step = divmod(max(self.step - 1, 0), self.iters_per_epoch)
        step += self.step > 0
        if self.processes.main:
            logger.info("validating after step %d", self.step)
        found = validation.run(self.model, epoch, step, lambda: self.stop.received > 0)
        if found is None:
            return  # a resumed run begins with it
        validation.done_step = self.step
        self.log.validation(found.figures, epoch=epoch, step=step)
        if found.best and self.processes.main:
            path = self.folder.save_best(found.best, self._checkpoint(epoch))
            best, value = found.best["metric"], found.best["value"]
            logger.info("saved %s: the best %s so far, %.4g", path, best, value)
        self.meter.start()

    def _end_epoch(self, epoch: int, lr: float) -> None:
        if self.optimizer.window:  # an epoch's last micro-batches that fill no optimizer step
            self.stop.any_rank(False)
        mean = self.epoch_loss / self.epoch_steps if self.epoch_steps else math.nan
        self.log.epoch({"train_loss": mean, "train_lr": lr}, epoch)
        self.epoch_loss, self.epoch_steps = 0.0, 0
        if self.processes.main:
            logger.info("saved %s", self.folder.save_checkpoint(epoch, self._checkpoint(epoch)))
        self._save_state()

    def _checkpoint(self, epoch: int) -> dict[str, Any]:
        """Return a checkpoint for users, in the original's structure."""
        kept = {key: self.optimizer.state()[key] for key in ("optimizer", "scaler")}
        return {"model": self._trained_weights(), **kept, "config": self.config, "epoch": epoch}

    def _trained_weights(self) -> dict[str, torch.Tensor]:
        named = self.model.named_parameters()
        return {name: p.detach().cpu() for name, p in named if p.requires_grad}

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "epoch_loss": [self.epoch_loss, self.epoch_steps]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""
        self.step = self.saved_step = state["step"]
        self.epoch_loss, self.epoch_steps = state.get("epoch_loss", (0.0, 0))

    def _save_state(self) -> None:
        """Save what the next step depends on, of every process."""
        self.optimizer.check_pending_step()
        own = {key: value for part in self.own for key, value in part.state().items()}
        self.bad_samples.collect(self.loader.take_bad())  # the data position is after them
        ranks = self.processes.gather([own])
        if self.processes.main:
            shared = {key: value for part in self.shared for key, value in part.state().items()}
            content = {"model": self._trained_weights(), **shared, "ranks": ranks}
            self.folder.save_state(self.step, content, self.options.keep_last)
        self.saved_step = self.step
        self.meter.start()

    def _restore(self, start: ResumePoint, state: Mapping[str, Any]) -> None:
        """Take up the state of a run, as far as it has one."""
        load_trained(self.model, state, start.origin)
        try:
            self.optimizer.restore(state)
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{start.origin}: its optimizer's state does not fit this run ({one_line(error)}); "
                "to start from its projection alone use model.ckpt"
            ) from error
        ranks = state.get("ranks")
        if ranks is None:  # an epoch's checkpoint has no data position: read new data
            self.restore(state)
            self.loader.seed += 1_000_003 * self.step // self.iters_per_epoch
            return
        # In a folder of its own, a run has no best yet, and validates where it begins.
        others = () if start.same_folder else (self.validation,)
        for part in self.shared:
            if part is not self.optimizer and part not in others:
                part.restore(state)
        if len(ranks) != self.processes.count:
            self.loader.restore(ranks[0])  # it reports what that means
            return
        for part in self.own:
            part.restore(ranks[self.processes.rank])
