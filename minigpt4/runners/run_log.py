"""A run's figures: JSON lines in ``log.txt``, a bar or plain lines for people, and trackers."""

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

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
# The bar is short, for the figures to find room behind it, and tells the time left itself.
_BAR = "{desc} {percentage:3.0f}%|{bar:5}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_BAR_WORDS = _WORDS | {
    "grad_norm": lambda x: f"grad {x:.2g}",
    "data_wait": lambda x: f"{100 * x:.0f} % wait",
}

logger = logging.getLogger(__name__)


class RunLog:
    """Keeps and shows the figures of a run; a context manager.

    On a terminal (stderr) one bar runs through the whole run; elsewhere there is no bar, and each
    reading is a line.

    Args:
        folder: Of the run; it must exist.
        total_steps: Of the whole run.
        steps_per_epoch: All epochs have as many.
        first_step: Steps that an interrupted run had done already.
        trackers: Names of ``run.trackers``.
        run_name: How the trackers call this run.
        config: Resolved, for the trackers.
        main: False in every process but one: nothing is written, shown or sent.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        steps_per_epoch: int,
        first_step: int = 0,
        trackers: Sequence[str] = (),
        run_name: str = "",
        config: Mapping[str, Any] | None = None,
        main: bool = True,
    ) -> None:
        self._folder, self.lines = folder, JsonLines(folder / "log.txt")
        self.total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        self._epochs = math.ceil(total_steps / steps_per_epoch)
        self._done = self._first_step = first_step
        self._tracker_names, self._run_name, self._config = trackers, run_name, config
        self._main = main
        self._bar: tqdm[Any] | None = None
        self._trackers: Any = None
        self._open = ExitStack()

    def __enter__(self) -> "RunLog":
        if not self._main:
            return self
        with ExitStack() as opened:
            if sys.stderr.isatty():
                opened.enter_context(logging_redirect_tqdm())
                self._bar = opened.enter_context(self._make_bar())
            folder, config, first = self._folder, self._config, self._first_step
            if self._tracker_names:
                from minigpt4.runners.trackers import Trackers

                self._trackers = Trackers(
                    self._tracker_names, folder, self._run_name, config, first
                )
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:  # the bar goes last: what the trackers have to say is written above it
            if self._trackers is not None:
                self._trackers.close(failed=error is not None)

    def advance(self) -> None:
        """One training step is done."""
        self._done += 1
        if self._bar is not None:
            title = self._title((self._done - 1) // self._steps_per_epoch)
            self._bar.set_description_str(title, refresh=False)
            self._bar.update()

    def step(self, figures: Mapping[str, float], *, epoch: int, step: int) -> None:
        """Figures of the latest steps.

        Args:
            figures: By name: loss, lr, grad_norm and what ``Meter.read`` gives; others as well.
            epoch: From 0.
            step: Steps done within the epoch, so from 1.

        Raises:
            MiniGPT4Error: when ``log.txt`` cannot be written.
        """
        if not self._main:
            return
        self.lines.append({"epoch": epoch, "step": step, **figures})
        self._send(figures, epoch * self._steps_per_epoch + step)
        if self._bar is not None:
            shown = {name: value for name, value in figures.items() if name != "eta_seconds"}
            self._bar.set_postfix_str(in_words(shown, _BAR_WORDS))
        else:
            where = f"{self._title(epoch)}, step {step}/{self._steps_per_epoch}"
            logger.info("%s: %s", where, in_words(figures))

    def epoch(self, figures: Mapping[str, float], epoch: int) -> None:
        """Figures of a whole epoch (from 0), such as train_loss and train_lr.

        Raises:
            MiniGPT4Error: when ``log.txt`` cannot be written.
        """
        if not self._main:
            return
        self.lines.append({"epoch": epoch, **figures})
        self._send(figures, (epoch + 1) * self._steps_per_epoch)
        logger.info("%s: %s", self._title(epoch), in_words(figures))

    def validation(
        self, figures: Mapping[str, Mapping[str, float]], *, epoch: int, step: int
    ) -> None:
        """Figures of a validation, of each data set.

        Args:
            figures: Data set → name → value.
            epoch: From 0.
            step: Steps done within the epoch; 0 before the first.

        Raises:
            MiniGPT4Error: when ``log.txt`` cannot be written.
        """
        if not self._main:
            return
        self.lines.append({"epoch": epoch, "step": step, "valid": figures})
        total = epoch * self._steps_per_epoch + step
        for name, values in figures.items():
            self._send({f"valid/{name}/{figure}": v for figure, v in values.items()}, total)
            where = f"{self._title(epoch)}, step {step}/{self._steps_per_epoch}"
            logger.info("%s, valid %s: %s", where, name, in_words(values))

    def state(self) -> dict[str, Any]:
        """Return the size of ``log.txt`` in bytes."""
        return {"log_bytes": self.lines.size}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Cut what was written after :meth:`state` was asked; a new run's log has nothing."""
        self.truncate(state["log_bytes"])

    def truncate(self, size: int) -> None:
        """Cut what an interrupted run had written after its last save; see :class:`JsonLines`."""
        if self._main:
            self.lines.truncate(size)

    def _send(self, figures: Mapping[str, float], step: int) -> None:
        if self._trackers is not None:
            self._trackers.log(figures, step)

    def _make_bar(self) -> "tqdm[Any]":
        sized = _terminal_has_a_size()
        return tqdm(
            desc=self._title(self._done // self._steps_per_epoch),
            total=self.total_steps,
            initial=self._done,
            mininterval=0.5,
            bar_format=_BAR,
            # Figures that find no room are cut off, not wrapped.
            dynamic_ncols=sized,
            ncols=None if sized else 120,
            nrows=None if sized else 24,
        )

    def _title(self, epoch: int) -> str:
        return f"epoch {min(epoch + 1, self._epochs)}/{self._epochs}"


def in_words(figures: Mapping[str, float], words: _Words = _WORDS) -> str:
    """Figures as people read them."""
    return ", ".join(
        words[name](value)
        if name in words and math.isfinite(value)
        else f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in figures.items()
    )


def _terminal_has_a_size() -> bool:
    """Whether stderr knows its width and height; one made by docker or script may be 0 by 0."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        return False
