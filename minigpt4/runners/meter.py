"""A training's speed: samples and tokens a second, waiting for data, memory, time left."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

GB = 1e9


@dataclass(eq=False, kw_only=True)
class Meter:
    """What the loop feeds at each step and reads at each line of the log.

    On a GPU a step's call returns before its work is done: read after something that waits for
    the GPU, the mean loss for one, or the speed is too high. A reading has samples_per_second and,
    where tokens were counted, tokens_per_second, both over all processes; data_wait, a share from 0
    to 1; memory_gb, the peak; eta_seconds, where a step was counted.

    Attributes:
        total_steps: Of the whole run.
        first_step: Steps that an interrupted run had done already.
        processes: All of them; each is taken to do what this one does.
        device: Where the model lies; on a GPU its memory is told, elsewhere the process's.
        clock: Seconds that only ever grow.
    """

    total_steps: int
    first_step: int = 0
    processes: int = 1
    device: torch.device | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._steps_left = self.total_steps - self.first_step
        self._measured_seconds, self._measured_steps = 0.0, 0  # by all readings
        self.start()

    def start(self) -> None:
        """Forget what came since the last reading: a checkpoint or a pause is no slow step."""
        self._since = self.clock()
        self._waited = 0.0
        self._steps = self._samples = self._tokens = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever waits for the next batch."""
        begin = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - begin

    def count(self, samples: int, tokens: int = 0) -> None:
        """Count a step of this process as done."""
        self._steps += 1
        self._steps_left -= 1
        self._samples += samples
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Return figures since the last reading (or ``start``); the next one counts anew."""
        seconds = max(self.clock() - self._since, 1e-9)
        self._measured_seconds += seconds
        self._measured_steps += self._steps
        figures = {"samples_per_second": round(self._samples * self.processes / seconds, 2)}
        if self._tokens:
            figures["tokens_per_second"] = round(self._tokens * self.processes / seconds, 1)
        figures["data_wait"] = round(min(self._waited / seconds, 1.0), 4)
        figures["memory_gb"] = round(peak_memory(self.device) / GB, 3)
        if self._measured_steps:
            pace = self._measured_seconds / self._measured_steps
            figures["eta_seconds"] = round(pace * max(self._steps_left, 0), 1)
        self.start()
        return figures


def peak_memory(device: torch.device | None = None) -> int:
    """Bytes that tensors took at most on this GPU; without one, that this process took."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
