"""Optimizer step: losses of micro-batches → steps of AdamW, those that are finite."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.distributed import Distributed, StopSignals
from minigpt4.runners.nonfinite import MicroBatch, NonFiniteGuard, PendingStep
from minigpt4.runners.options import RunOptions


class AccumulatedGradients:
    """Gradients of micro-batches since the last step of the optimizer."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def state(self) -> dict[str, Any]:
        gradients = [p.grad for p in self._parameters]
        return {"gradients": gradients if any(g is not None for g in gradients) else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        gradients = state["gradients"] or [None] * len(self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


@dataclass(eq=False)
class OptimizerStep:
    """AdamW on what a model trains, with the mean gradient of all processes.

    Non-finite steps are skipped on the device. The host reads the result one step later, so a GPU
    never idles.
    """

    run: RunOptions
    model: MiniGPT4
    processes: Distributed
    guard: NonFiniteGuard
    stop: StopSignals

    def __post_init__(self) -> None:
        model, run = self.model, self.run
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.gradients = AccumulatedGradients(self.trained)
        groups = parameter_groups(model, run.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=run.init_lr, betas=(0.9, 0.999), fused=True)
        # Also where nothing is scaled: it skips non-finite steps on the device.
        self.scales_loss = model.compute_dtype == torch.float16
        scale = 2.0**16 if self.scales_loss else 1.0
        self.scaler = torch.amp.GradScaler(model.device.type, init_scale=scale)
        self.window: list[MicroBatch] = []  # since the last step of the optimizer
        self._pending: PendingStep | None = None  # the last step, until it is known to be finite
        self.grad_norm = math.nan  # of the last finite step
        self.scaler_skips = 0  # steps left out while the fp16 scaler tried its factors

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def backward(self, loss: torch.Tensor, micro_batch: MicroBatch) -> None:
        """Add a micro-batch's gradient."""
        # Differs from the original: it does not divide under accumulation.
        share = self.run.accum_grad_iters if self.run.divide_accumulated_loss else 1
        # Times one, but Inf or NaN in the loss reaches the gradient, which the scaler checks.
        self.scaler.scale(loss / share * (1 + 0 * loss.detach())).backward()
        self.window.append(micro_batch)

    def step(self, epoch: int, step: int) -> None:
        """Step on the mean gradient of all processes; a non-finite step is left out."""
        if self._pending:
            self.check_pending_step()
        else:  # a lost process is named here: the averaging would wait for it much longer
            self.stop.any_rank(False)
        window, self.window = self.window, []
        if self.processes.count > 1:
            self.processes.average_gradients(self.trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.run.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.run.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.scales_loss else 1.0)
        self.optimizer.zero_grad()
        self._pending = PendingStep(window, norm, epoch, step)
        if self._pending.known:
            self.check_pending_step()

    def check_pending_step(self) -> None:
        """Read whether the last step was finite; all processes do so together."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        losses, norm = pending.figures()
        # The scaler tries large factors: an overflowing gradient is no error.
        numbers = losses if self.scales_loss else [*losses, norm]
        if self.stop.any_rank(not all(map(math.isfinite, numbers))):
            self.guard.handle(pending)
        elif math.isfinite(norm):
            self.grad_norm = norm
        else:
            self.scaler_skips += 1

    def skipped_steps(self) -> dict[str, int]:
        counts = {"nonfinite_steps": self.guard.skipped, "scaler_skips": self.scaler_skips}
        return {name: count for name, count in counts.items() if count}

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scales_loss else None,
            "grad_norm": self.grad_norm,
            "skips": [self.guard.skipped, self.scaler_skips],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned, or an original checkpoint.

        Raises:
            KeyError: and ValueError, TypeError, for what is of another model or no such state.
        """
        saved = state["optimizer"]
        # Ours is fused, whatever program saved it, and counts steps on the device.
        groups = [group | {"fused": True} for group in saved["param_groups"]]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self.scales_loss and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.grad_norm = state.get("grad_norm", math.nan)
        self.guard.skipped, self.scaler_skips = state.get("skips", (0, 0))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters with and without weight decay, divided as in the original."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": d} for d in (weight_decay, 0.0)]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            groups[exempt]["params"].append(parameter)
    return groups
