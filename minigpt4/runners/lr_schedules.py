"""Learning-rate schedules: (epoch, step within the epoch) → learning rate.

A schedule receives the keys of the run section that its signature names, and the final
``iters_per_epoch``; options that it alone has are keys of the run section, too.

Source: the original's two schedulers, quirks included. The warm-up interpolates on the step
*within* the epoch, so it restarts at an epoch border; at its end the rate joins the cosine where
that is by then, not at ``init_lr``.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from minigpt4.errors import ConfigError
from minigpt4.registry import LR_SCHEDULES


class LRSchedule(Protocol):
    """The learning rate of a step; ``step`` counts within ``epoch``, both from 0."""

    def __call__(self, epoch: int, step: int) -> float: ...


def _warm_up(step: int, init_lr: float, warmup_lr: float, warmup_steps: int) -> float:
    start = warmup_lr if warmup_lr >= 0 else init_lr
    slope = (init_lr - start) * step / max(warmup_steps, 1)
    return min(init_lr, start + slope)


@LR_SCHEDULES.register("linear_warmup_cosine_lr")
@dataclass(frozen=True)
class LinearWarmupCosineLR:
    """Warm-up over ``warmup_steps`` global steps, then one cosine over the whole run."""

    init_lr: float
    min_lr: float
    max_epoch: int
    iters_per_epoch: int
    warmup_steps: int = 0
    warmup_lr: float = -1.0

    def __call__(self, epoch: int, step: int) -> float:
        total_step = epoch * self.iters_per_epoch + step
        if total_step < self.warmup_steps:
            return _warm_up(step, self.init_lr, self.warmup_lr, self.warmup_steps)
        angle = math.pi * total_step / (self.max_epoch * self.iters_per_epoch)
        half = 0.5 * (1.0 + math.cos(angle))
        return (self.init_lr - self.min_lr) * half + self.min_lr


@LR_SCHEDULES.register("linear_warmup_step_lr")
@dataclass(frozen=True)
class LinearWarmupStepLR:
    """Warm-up formula throughout epoch 0, then a decay by ``lr_decay_rate`` an epoch."""

    init_lr: float
    min_lr: float
    max_epoch: int
    warmup_steps: int = 0
    warmup_lr: float = -1.0
    lr_decay_rate: float | None = None

    def __post_init__(self) -> None:
        if self.lr_decay_rate is None and self.max_epoch > 1:
            raise ConfigError(
                "run.lr_decay_rate: linear_warmup_step_lr needs it for more than one epoch"
            )

    def __call__(self, epoch: int, step: int) -> float:
        if epoch == 0:
            return _warm_up(step, self.init_lr, self.warmup_lr, self.warmup_steps)
        decay = 1.0 if self.lr_decay_rate is None else self.lr_decay_rate
        return max(self.min_lr, self.init_lr * decay**epoch)
