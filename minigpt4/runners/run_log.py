"""Log of a run: its speed and figures, in ``log.txt``, for people and for trackers."""

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.files import JsonLines

_Words = dict[str, Callable[[float], str]]

# How people read a figure; any other is its name and four digits.
_WORDS: _Words = {
    "loss": lambda x: f"loss {x:.4f}",
    "train_loss": lambda x: f"mean loss {x:.4f}",
    "lr": lambda x: f"lr {x:.3g}",
    "train_lr": lambda x: f"lr {x:.3g}",
    "grad_norm": lambda x: f"grad norm {x:.2g}",
    "samples_per_second": lambda x: f"{x:.0f} samples/s",
    "tokens_per_second": lambda x: f"{x:.0f} tokens/s",
    "data_wait": lambda x: f"{100 * x:.0f} % waiting for data",
    "memory_gb": lambda x: f"{x:.1f} GB",
    "eta_seconds": lambda x: f"{timedelta(seconds=round(x))} left",
}
# The bar is short, to leave room for the figures, and shows the time left itself.
_BAR = "{desc} {percentage:3.0f}%|{bar:5}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_BAR_WORDS = _WORDS | {
    "grad_norm": lambda x: f"grad {x:.2g}",
    "data_wait": lambda x: f"{100 * x:.0f} % wait",
}

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class RunLog:
    """Keeps and shows the figures of a run; a context manager.

    On a terminal (stderr) one bar runs through the whole run; elsewhere each reading is a line. An
    epoch counts from 0, and a step is the number of steps done within it. A ``log.txt`` that cannot
    be written is a ``MiniGPT4Error``.

    Attributes:
        folder: Folder of the run; it must exist.
        total_steps: Steps of the whole run.
        steps_per_epoch: Steps of each epoch.
        first_step: Steps that an interrupted run had done already.
        trackers: Names of ``run.trackers``.
        config: Resolved config, for the trackers.
        main: False in every process but one: nothing is written, shown or sent.
    """

    folder: Path
    total_steps: int
    steps_per_epoch: int
    first_step: int = 0
    trackers: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    main: bool = True

    def __post_init__(self) -> None:
        self.lines = JsonLines(self.folder / "log.txt")
        self._epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        self._done = self.first_step
        self._bar: tqdm[Any] | None = None
        self._trackers: Any = None
        self._open = ExitStack()

    def __enter__(self) -> "RunLog":
        if self.main and (sys.stderr.isatty() or self.trackers):
            self._open_bar_and_trackers()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:  # the bar goes last: the trackers' messages are written above it
            if self._trackers is not None:
                self._trackers.close(failed=kind is not None)

    def advance(self) -> None:
        """Count a training step as done."""
        self._done += 1
        if self._bar is not None:
            title = self._title((self._done - 1) // self.steps_per_epoch)
            self._bar.set_description_str(title, refresh=False)
            self._bar.update()

    def step(self, figures: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Keep and show loss, lr, grad_norm and other figures of the latest steps."""
        self._keep({"epoch": epoch, "step": step, **figures}, figures, epoch, step)
        if self._bar is not None:
            shown = {name: value for name, value in figures.items() if name != "eta_seconds"}
            self._bar.set_postfix_str(in_words(shown, _BAR_WORDS))
        elif self.main:
            logger.info("%s: %s", self._title(epoch, step), in_words(figures))

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Keep and show figures of a whole epoch, such as train_loss and train_lr."""
        self._keep({"epoch": epoch, **figures}, figures, epoch + 1)
        if self.main:
            logger.info("%s: %s", self._title(epoch), in_words(figures))

    def validation(
        self, figures: Mapping[str, Mapping[str, float]], *, epoch: int, step: int
    ) -> None:
        """Keep and show the figures of a validation: data set → name → value."""
        named = {f"valid/{n}/{key}": v for n, row in figures.items() for key, v in row.items()}
        self._keep({"epoch": epoch, "step": step, "valid": figures}, named, epoch, step)
        for name, values in figures.items() if self.main else ():
            logger.info("%s, valid %s: %s", self._title(epoch, step), name, in_words(values))

    def state(self) -> dict[str, Any]:
        return {"log_bytes": self.lines.size}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Cut what was written after :meth:`state` was asked; a new run's log has nothing."""
        self.truncate(state["log_bytes"])

    def truncate(self, size: int) -> None:
        """Cut what an interrupted run had written after its last save; see :class:`JsonLines`."""
        if self.main:
            self.lines.truncate(size)

    def _keep(
        self, line: Mapping[str, Any], figures: Mapping[str, float], epoch: int, step: int = 0
    ) -> None:
        if self.main:
            self.lines.append(line)
        if self._trackers is not None:
            self._trackers.log(figures, epoch * self.steps_per_epoch + step)

    def _open_bar_and_trackers(self) -> None:
        with ExitStack() as opened:
            if sys.stderr.isatty():
                opened.enter_context(logging_redirect_tqdm())
                self._bar = opened.enter_context(self._make_bar())
            if self.trackers:
                from minigpt4.runners.trackers import Trackers

                self._trackers = Trackers(self.trackers, self.folder, self.config, self.first_step)
            self._open = opened.pop_all()

    def _make_bar(self) -> "tqdm[Any]":
        sized = _terminal_has_a_size()
        return tqdm(
            desc=self._title(self._done // self.steps_per_epoch),
            total=self.total_steps,
            initial=self._done,
            mininterval=0.5,
            bar_format=_BAR,
            # Figures that find no room are cut off, not wrapped.
            dynamic_ncols=sized,
            ncols=None if sized else 120,
            nrows=None if sized else 24,
        )

    def _title(self, epoch: int, step: int | None = None) -> str:
        within = "" if step is None else f", step {step}/{self.steps_per_epoch}"
        return f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}{within}"


def in_words(figures: Mapping[str, float], words: _Words = _WORDS) -> str:
    """Return figures as people read them."""
    return ", ".join(
        words[name](value)
        if name in words and math.isfinite(value)
        else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in figures.items()
    )


def _terminal_has_a_size() -> bool:
    """Return whether stderr knows its size; a terminal of docker or script may be 0 by 0."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        return False


@dataclass(eq=False)
class Meter:
    """Measures the speed of a training: the loop counts each step, each log line reads it.

    On a GPU a step's call returns before its work is done: read after something that waits for
    the GPU, such as the mean loss.

    Attributes:
        steps_left: Steps until the end of the run.
        processes: Number of processes; each is taken to do what this one does.
        device: On a GPU its memory is reported, elsewhere the process's.
        clock: Seconds that only ever grow.
    """

    steps_left: int
    processes: int = 1
    device: torch.device | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._measured_seconds, self._measured_steps = 0.0, 0  # by all readings
        self.start()

    def start(self) -> None:
        """Forget what came since the last reading: a checkpoint or a pause is no slow step."""
        self._since, self._waited = self.clock(), 0.0
        self._steps = self._samples = self._tokens = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - begin

    def count(self, samples: int, tokens: int = 0) -> None:
        """Count a step of this process as done."""
        self._steps += 1
        self.steps_left -= 1
        self._samples += samples
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Return figures since the last reading (or ``start``), rates over all processes."""
        seconds = max(self.clock() - self._since, 1e-9)
        self._measured_seconds += seconds
        self._measured_steps += self._steps
        figures = {"samples_per_second": round(self._samples * self.processes / seconds, 2)}
        if self._tokens:
            figures["tokens_per_second"] = round(self._tokens * self.processes / seconds, 1)
        figures["data_wait"] = round(min(self._waited / seconds, 1.0), 4)
        figures["memory_gb"] = round(peak_memory(self.device) / 1e9, 3)
        if self._measured_steps:
            pace = self._measured_seconds / self._measured_steps
            figures["eta_seconds"] = round(pace * max(self.steps_left, 0), 1)
        self.start()
        return figures


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most bytes that tensors took on this GPU; without one, this process."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
