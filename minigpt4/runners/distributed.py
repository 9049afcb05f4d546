"""Several processes as one run: what they agree on, mean gradients, signals, lost processes."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import distributed, nn

from minigpt4.errors import MiniGPT4Error, one_line

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on a signal that the terminal has sent to every process already.
_SAME_SIGNAL_SECONDS = 1.0
_ANSWER_SECONDS = 5.0  # for the others to say that they are there, after one was lost


class StopSignals:
    """SIGTERM and Ctrl-C ask for a stop after the step; a second one stops this process at once.

    Attributes:
        received: The first signal's number; 0 before.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SAME_SIGNAL_SECONDS:
            os._exit(128 + number)


class Processes:
    """The processes of a run.

    Args:
        accelerator: Its processes.
        timeout: Seconds without an answer after which another process counts as lost.

    Attributes:
        rank: Of this one.
        count: How many there are.
        main: Whether it is the one that writes and speaks.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.main = accelerator.is_main_process
        self._control: distributed.ProcessGroup | None = None
        if self.count > 1:
            # On the CPU: to agree must not wait for a GPU's queue.
            group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            assert isinstance(group, distributed.ProcessGroup)
            self._control = group

    def largest(self, values: Sequence[int]) -> list[int]:
        """Element by element the largest of all processes' numbers; all of them must ask.

        Raises:
            MiniGPT4Error: when a process does not answer, naming it.
        """
        if self._control is None:
            return list(values)
        told = torch.tensor(values)
        with self.naming_the_lost():
            distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._control)
        return [int(value) for value in told]

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks; all of them must ask.

        Raises:
            MiniGPT4Error: when a process does not answer, naming it.
        """
        with self.naming_the_lost():
            return list(gather_object(items))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its mean over the processes.

        One message for all of them, once an optimizer step: the trained layer stands in front of
        the language model, so its gradient comes last and there is nothing to overlap with.
        """
        if self._control is None:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        with self.naming_the_lost():
            distributed.all_reduce(whole)
        whole /= self.count
        parts = whole.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def start_equal(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every process takes over the main process's values."""
        if self._control is None:
            return
        with self.naming_the_lost():
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    @contextlib.contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Around what waits for all processes: a lost one is named in one line."""
        try:
            yield
        except RuntimeError as error:  # torch's distributed errors are subclasses
            if self._control is None:
                raise
            lost = MiniGPT4Error(f"{self._lost()} ({one_line(error, 120)}); this process stops")
            lost.rank_local = True
            raise lost from error

    def _lost(self) -> str:
        """Who does not answer; the store lies with the launcher and outlives a process."""
        own, count = self.rank, self.count
        present = {own}
        try:
            store = distributed.distributed_c10d._get_default_store()
            store.set(f"minigpt4/there/{own}", "yes")
            until = time.monotonic() + _ANSWER_SECONDS
            while len(present) < count and time.monotonic() < until:
                time.sleep(0.1)
                present |= {r for r in range(count) if store.check([f"minigpt4/there/{r}"])}
        except RuntimeError:  # without a launcher the store ends with its process
            present = set(range(1, count)) | {own}
        names = [str(rank) for rank in range(count) if rank not in present]
        if not names:
            return "the processes lost each other: the network failed, or one waited too long"
        who = "rank " + names[0] if len(names) == 1 else "ranks " + ", ".join(names)
        return f"{who} died or hangs: what went wrong may stand above"
