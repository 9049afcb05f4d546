"""Learning-rate schedules: (epoch, step within the epoch) → learning rate.

A schedule receives the keys of the run section that its signature names, and ``iters_per_epoch`` as
it is in the end; options that it alone has are keys of the run section, too.

Source: the original's two schedulers, quirks included; exact against
``tests/golden/lr_schedules.json``. The quirks: the warm-up interpolates on the step *within* the
epoch, so one that spans an epoch border starts anew; and at its end the rate joins the cosine
where that is by then, not at ``init_lr``.
"""

import math
from typing import Protocol

from minigpt4.errors import ConfigError
from minigpt4.registry import LR_SCHEDULES


class LRSchedule(Protocol):
    """The learning rate of a step; ``step`` counts within ``epoch``, both from 0."""

    def __call__(self, epoch: int, step: int) -> float: ...


class _Warmup:
    def __init__(self, init_lr: float, warmup_lr: float, warmup_steps: int) -> None:
        self.start = warmup_lr if warmup_lr >= 0 else init_lr
        self.end = init_lr
        self.steps = warmup_steps

    def at(self, step: int) -> float:
        slope = (self.end - self.start) * step / max(self.steps, 1)
        return min(self.end, self.start + slope)


@LR_SCHEDULES.register("linear_warmup_cosine_lr")
class LinearWarmupCosineLR:
    """Warm-up over ``warmup_steps`` global steps, then one cosine over the whole run.

    Args:
        init_lr: Peak.
        min_lr: End of the cosine.
        max_epoch: Epochs of the run.
        iters_per_epoch: Steps of an epoch.
        warmup_steps: Global steps of warm-up.
        warmup_lr: Start of the warm-up; negative means ``init_lr``.
    """

    def __init__(
        self,
        init_lr: float,
        min_lr: float,
        max_epoch: int,
        iters_per_epoch: int,
        warmup_steps: int = 0,
        warmup_lr: float = -1.0,
    ) -> None:
        self._warmup = _Warmup(init_lr, warmup_lr, warmup_steps)
        self._init_lr, self._min_lr = init_lr, min_lr
        self._total = max_epoch * iters_per_epoch
        self._iters_per_epoch = iters_per_epoch

    def __call__(self, epoch: int, step: int) -> float:
        total_step = epoch * self._iters_per_epoch + step
        if total_step < self._warmup.steps:
            return self._warmup.at(step)
        half = 0.5 * (1.0 + math.cos(math.pi * total_step / self._total))
        return (self._init_lr - self._min_lr) * half + self._min_lr


@LR_SCHEDULES.register("linear_warmup_step_lr")
class LinearWarmupStepLR:
    """Warm-up formula throughout epoch 0, then a decay by ``lr_decay_rate`` an epoch.

    Args:
        init_lr: Peak.
        min_lr: Floor of the decay.
        max_epoch: Epochs of the run.
        warmup_steps: Steps of warm-up.
        warmup_lr: Start of the warm-up; negative means ``init_lr``.
        lr_decay_rate: Factor of each epoch; needed when there is more than one.
    """

    def __init__(
        self,
        init_lr: float,
        min_lr: float,
        max_epoch: int,
        warmup_steps: int = 0,
        warmup_lr: float = -1.0,
        lr_decay_rate: float | None = None,
    ) -> None:
        if lr_decay_rate is None and max_epoch > 1:
            raise ConfigError(
                "run.lr_decay_rate: linear_warmup_step_lr needs it for more than one epoch"
            )
        self._warmup = _Warmup(init_lr, warmup_lr, warmup_steps)
        self._init_lr, self._min_lr = init_lr, min_lr
        self._decay_rate = 1.0 if lr_decay_rate is None else lr_decay_rate

    def __call__(self, epoch: int, step: int) -> float:
        if epoch == 0:
            return self._warmup.at(step)
        return max(self._min_lr, self._init_lr * self._decay_rate**epoch)
