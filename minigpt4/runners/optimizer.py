"""Optimization: losses of micro-batches → steps of the optimizer, those that are finite."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.distributed import Processes
from minigpt4.runners.nonfinite import NonFiniteGuard, Step, Update


class Optimization:
    """AdamW on what a model trains, with the mean gradient of all processes.

    Args:
        model: Of the run.
        task: Of the run.
        processes: Of the run.
        guard: Is told of a step that is not finite.
        agree: Whether a thing holds in any process; all of them ask together.
        lr: Learning rate to begin with.
        weight_decay: Of parameters with two or more dimensions.
        accumulated: Micro-batches to a step of the optimizer.
        divided: Whether their losses are divided by that number.
        max_grad_norm: The gradient is clipped to this norm.

    Attributes:
        trained: The parameters.
        window: Micro-batches since the last step of the optimizer.
        grad_norm: Of the last step that was finite.
        scaler_skips: Steps left out while the fp16 scaler tried its factors.
    """

    def __init__(
        self,
        model: MiniGPT4,
        task: Any,
        processes: Processes,
        guard: NonFiniteGuard,
        agree: Callable[[bool], bool],
        *,
        lr: float,
        weight_decay: float,
        accumulated: int,
        divided: bool,
        max_grad_norm: float | None,
    ) -> None:
        self._model, self._task = model, task
        self._processes, self._guard, self._agree = processes, guard, agree
        self._accumulated, self.divided, self._max_grad_norm = accumulated, divided, max_grad_norm
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, weight_decay), lr=lr, betas=(0.9, 0.999), fused=True
        )
        # Also where nothing is scaled: it leaves a step out that is not finite, on the device and
        # without the host's waiting for it.
        self.scales_loss = model.compute_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(
            model.device.type, init_scale=2.0**16 if self.scales_loss else 1.0
        )
        self.window: list[Step] = []
        self._unsettled: Update | None = None  # the last step, until it is known to be finite
        self.grad_norm = math.nan
        self.scaler_skips = 0

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def backward(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's gradient."""
        # Differs from the original: it does not divide under accumulation.
        share = self._accumulated if self.divided else 1
        # Times one; but Inf or NaN in the loss must reach the gradient, which the scaler looks at.
        self.scaler.scale(loss / share * (1 + 0 * loss.detach())).backward()

    def update(self, epoch: int, step: int) -> None:
        """One step of the optimizer on the mean gradient of all processes.

        The device leaves it out where that is not finite. Whether it did, a GPU's host learns when
        the GPU is busy with the next step: to wait for it would let it stand idle.
        """
        if self._unsettled:
            self.settle()
        else:  # a lost process is named here: the averaging would wait for it much longer
            self._agree(False)
        window, self.window = self.window, []
        self._processes.average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self._max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.scales_loss else 1.0)
        self.optimizer.zero_grad()
        self._unsettled = Update(window, norm, epoch, step)
        if self._unsettled.known:
            self.settle()

    def settle(self) -> None:
        """Learn whether the last step of the optimizer was finite; all processes do so together."""
        update, self._unsettled = self._unsettled, None
        if update is None:
            return
        losses, norm = update.figures()
        # The scaler tries large factors: a gradient that overflows is then no fault.
        numbers = losses if self.scales_loss else [*losses, norm]
        if self._agree(not all(map(math.isfinite, numbers))):
            self._guard.handle(self._model, self._task, update.window, update.epoch, update.step)
        elif math.isfinite(norm):
            self.grad_norm = norm
        else:
            self.scaler_skips += 1

    def state(self) -> dict[str, Any]:
        """Of optimizer and scaler, as checkpoints of the original hold them."""
        scaler = self.scaler.state_dict() if self.scales_loss else None
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            KeyError: and ValueError, TypeError, for what is of another model or no such state.
        """
        saved = state["optimizer"]
        # Of whatever program: ours is fused, and keeps its count of steps on the device.
        groups = [group | {"fused": True} for group in saved["param_groups"]]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.scales_loss and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def gradients(self) -> list[torch.Tensor | None] | None:
        """What micro-batches have added up to since the last step; None right behind one."""
        return [p.grad for p in self.trained] if self.window else None

    def restore_gradients(self, gradients: list[torch.Tensor | None] | None) -> None:
        for parameter, gradient in zip(self.trained, gradients or [], strict=bool(gradients)):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters, those without weight decay apart.

    Source: the original decays nothing with fewer than two dimensions, or with ``bias``, ``ln`` or
    ``bn`` in its name.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            (plain if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
