"""Run state: parts whose state the next step depends on."""

import math
import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy
import torch

from minigpt4.runners.distributed import Distributed


class Stateful(Protocol):
    """A part of a run that is saved, and restored when the run is resumed."""

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on, as plain values and tensors."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned; other parts' keys are in it, too."""


class RandomState:
    """The random generators of this process: python's, numpy's and torch's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def state(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = numpy.random.get_state()
        version, internal, gauss_next = random.getstate()
        on_gpu = self._device.type == "cuda"
        own = [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)]
        return {
            "rng": {
                "python": [version, list(internal), gauss_next],
                "numpy": own,
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self._device) if on_gpu else None,
            }
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        saved = state["rng"]
        version, internal, gauss_next = saved["python"]
        random.setstate((version, tuple(internal), gauss_next))
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))
        torch.set_rng_state(saved["torch"])
        if self._device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self._device)


class RunningLoss:
    """Losses of this process since the last line of the log."""

    def __init__(self, processes: Distributed) -> None:
        self._processes = processes
        self._losses: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor) -> None:
        self._losses.append(loss)

    def take_mean(self) -> tuple[float, int]:
        """Return the mean of all processes' finite losses, NaN without any, and how many steps."""
        losses = torch.stack(self._losses).float()
        finite = losses[losses.isfinite()]
        sums = torch.stack([finite.sum(), torch.tensor(float(len(finite)), device=losses.device)])
        total, count = self._processes.sum(sums).tolist()
        self._losses = []
        return total / count if count else math.nan, len(losses)

    def state(self) -> dict[str, Any]:
        return {"losses": [loss.item() for loss in self._losses]}

    def restore(self, state: Mapping[str, Any]) -> None:
        device = self._processes.device
        self._losses = [torch.tensor(loss, device=device) for loss in state["losses"]]
