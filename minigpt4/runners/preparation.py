"""What a run needs before its first step: processes and device, schedule, parameter groups.

Also the checks that concern several keys of a config at once.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from minigpt4.config import Config
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import ConfigError
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    LR_SCHEDULES,
    MODELS,
    RUNNERS,
    Fault,
    defaults,
)
from minigpt4.runners.lr_schedules import LRSchedule

Device = Literal["auto", "cuda", "cpu", "mps"]


def make_accelerator(device: Device) -> Accelerator:
    """Processes and device of this run.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device: cuda, but this machine has no usable GPU; "
            "add --options run.device=cpu (or auto)"
        )
    # Without cpu=True, accelerate on a machine without GPU believes every process to be rank 0.
    use_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    ddp = DistributedDataParallelKwargs(find_unused_parameters=False)
    return Accelerator(cpu=use_cpu, kwargs_handlers=[ddp])


def run_settings(config: Config) -> dict[str, Any]:
    """The run section, with the runner's own defaults where it says nothing."""
    runner = RUNNERS.get(config.run.get("runner", "runner_base"))
    return defaults(runner) | config.run_options()


def build_lr_schedule(settings: dict[str, Any], iters_per_epoch: int) -> LRSchedule:
    """The schedule that a run's settings name."""
    schedule: LRSchedule = LR_SCHEDULES.build(
        settings["lr_sched"],
        {
            "init_lr": settings["init_lr"],
            "min_lr": settings["min_lr"],
            "max_epoch": settings["max_epoch"],
            "iters_per_epoch": iters_per_epoch,
            "warmup_steps": settings["warmup_steps"],
            "warmup_lr": settings["warmup_lr"],
            "decay_rate": settings["lr_decay_rate"],
        },
    )
    return schedule


def check_run(config: Config) -> list[Fault]:
    """Faults that concern several keys or sections at once; none is left for after the loading."""
    faults = []
    settings = run_settings(config)
    try:
        build_lr_schedule(settings, settings["iters_per_epoch"] or 1)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        faults.append(Fault(key, text))
    if not settings["batch_size_train"]:
        lacking = [name for name, entry in config.datasets.items() if not entry.get("batch_size")]
        if lacking:
            text = f"missing, and datasets.{lacking[0]} has no batch_size of its own"
            faults.append(Fault("run.batch_size_train", text))
    model_size = (defaults(MODELS.get(config.arch)) | config.model).get("image_size")
    for name, entry in config.datasets.items():
        processors = (defaults(BUILDERS.get(name)) | entry).get("vis_processor") or {}
        for split, spec in processors.items():
            size = (defaults(IMAGE_PROCESSORS.get(spec["name"])) | spec).get("image_size")
            if None not in (size, model_size) and size != model_size:
                key = f"datasets.{name}.vis_processor.{split}.image_size"
                faults.append(Fault(key, f"{size}, but model.image_size is {model_size}"))
    return faults


def epoch_length(settings: dict[str, Any], datasets: Sequence[DataSet], world_size: int) -> int:
    """Steps of an epoch: ``run.iters_per_epoch``, else once through a single folder data set.

    Raises:
        ConfigError: for shards without ``iters_per_epoch``; their streams have no end.
    """
    if settings["iters_per_epoch"]:
        return int(settings["iters_per_epoch"])
    if len(datasets) != 1 or not datasets[0].countable:
        raise ConfigError("run.iters_per_epoch: missing; streams of shards have no length")
    batch_size = datasets[0].batch_size or settings["batch_size_train"]
    return math.ceil(datasets[0].source.units / (batch_size * world_size))


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
