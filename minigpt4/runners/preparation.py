"""What a run needs before its first step: processes, data sets, model, schedule, parameter groups.

Also the checks that concern several keys of a config at once.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from minigpt4.chat import check_chat
from minigpt4.config import Config, check_config
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import ConfigError
from minigpt4.models.minigpt4 import MiniGPT4
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


def build_datasets(config: Config) -> list[DataSet]:
    """The data sets, in the order of the YAML."""
    return [BUILDERS.build(name, entry, name=name) for name, entry in config.datasets.items()]


def build_model(config: Config, device: torch.device) -> MiniGPT4:
    """The model with its weights loaded; ``run.amp: False`` computes in fp32."""
    options = config.model_options()
    if not run_settings(config)["amp"]:
        options["precision"] = "fp32"
    model: MiniGPT4 = MODELS.build(config.arch, options, device=device)
    return model


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
    return faults + _image_size_faults(config)


def check_training(config: Config) -> None:
    """Hold a training's config whole.

    Raises:
        ConfigError: one line for every fault.
    """
    check_config(config, extra=check_chat, across=check_run)


def check_evaluation(config: Config) -> None:
    """Hold an evaluation's config; its run may lack what only a training needs.

    Raises:
        ConfigError: one line for every fault.
    """
    check_config(config, extra=_evaluation_faults, across=_image_size_faults, partial=("run",))


def _evaluation_faults(config: Config) -> list[Fault]:
    faults = check_chat(config)
    if "output_dir" not in config.run:
        faults.append(Fault("run.output_dir", "missing; the results of an evaluation go there"))
    if config.run.get("resume_ckpt_path"):
        text = "is of a training; name the projection to evaluate in model.ckpt"
        faults.append(Fault("run.resume_ckpt_path", text))
    return faults


def _image_size_faults(config: Config) -> list[Fault]:
    faults = []
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
