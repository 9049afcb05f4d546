"""Distributed: several processes as one run; mean gradients, lost ranks, when to stop."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    broadcast,
    broadcast_object_list,
    gather_object,
    reduce,
    wait_for_everyone,
)
from torch import distributed, nn

from minigpt4.errors import MiniGPT4Error, one_line

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on a signal that the terminal has sent to every process already.
_SAME_SIGNAL_SECONDS = 1.0
_ANSWER_SECONDS = 5.0  # for the others to say that they are there, after one was lost


class Distributed:
    """The processes of a run.

    What waits for all processes must be called by all of them. It raises a ``MiniGPT4Error`` that
    names a process without an answer for ``timeout`` seconds; with one process, it does nothing.
    The ``main`` process writes and logs.
    """

    def __init__(self, accelerator: Accelerator, timeout: float) -> None:
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.main, self.device = accelerator.is_main_process, accelerator.device
        self._control: Any = None
        if self.count > 1:
            # On the CPU, so that agreeing does not wait for a GPU's queue.
            limit = timedelta(seconds=timeout)
            self._control = distributed.new_group(backend="gloo", timeout=limit)

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        """Return the element-wise maximum over all processes."""
        if self._control is None:
            return list(values)
        found = torch.tensor(values)
        with self.report_lost_ranks():
            distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._control)
        return [int(value) for value in found]

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, in the order of their ranks."""
        if self._control is None:
            return items
        with self.report_lost_ranks():
            return list(gather_object(items))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of all processes' tensors."""
        if self._control is None:
            return values
        with self.report_lost_ranks():
            return reduce(values, reduction="sum")

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value."""
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait for all processes."""
        if self._control is None:
            return
        with self.report_lost_ranks():
            wait_for_everyone()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over several processes, in one message.

        The trained layer comes before the language model, so its gradient is the last one, and
        there is nothing to overlap with.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        with self.report_lost_ranks():
            distributed.all_reduce(whole)
        whole /= self.count
        parts = whole.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def broadcast_parameters(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give each of several processes the main process's values."""
        with self.report_lost_ranks():
            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    @contextlib.contextmanager
    def report_lost_ranks(self) -> Iterator[None]:
        """Report a lost process in one line, around what waits for all of them."""
        try:
            yield
        except RuntimeError as error:  # torch's distributed errors are subclasses
            if self._control is None:
                raise
            lost = MiniGPT4Error(f"{self._lost()} ({one_line(error, 120)}); this process stops")
            lost.rank_local = True
            raise lost from error

    def _lost(self) -> str:
        """Return who does not answer; the launcher's store outlives a process."""
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


@dataclass(eq=False)
class StopSignals:
    """Decides when a run stops: SIGTERM and Ctrl-C end it after a step on which all agree.

    A second signal stops this process at once.
    """

    processes: Distributed
    received: int = 0  # first signal of this process
    agreed: int = 0  # signal for which all processes stop
    _since: float = 0.0

    def any_rank(self, broken: bool) -> bool:
        """Return whether any rank has an error; all must call it, and agree on a stop."""
        asked = [self.agreed or self.received, int(broken)]
        self.agreed, any_broken = self.processes.all_reduce_max(asked)
        return bool(any_broken)

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _SAME_SIGNAL_SECONDS:
            os._exit(128 + number)
