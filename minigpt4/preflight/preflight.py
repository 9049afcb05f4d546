"""Preflight: everything that can be wrong with a run, found before anything heavy loads.

Each check takes the plan and returns faults; none stops another, and all are told at once. A check
is cheap: it reads the headers of weights, one sample of a data set, the state of the machine.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from minigpt4.assembly import precision_faults
from minigpt4.chat import GenerationOptions, check_chat
from minigpt4.config import Config, describe, find_faults, raise_faults
from minigpt4.datasets.options import ShardStorage
from minigpt4.datasets.own_rows.pairs import names_shards
from minigpt4.errors import ConfigError
from minigpt4.models.speed.device_map import device_map_faults
from minigpt4.models.speed.sharding import sharding_faults
from minigpt4.preflight.feature_identity import feature_faults, tower_faults
from minigpt4.preflight.first_samples import sample_faults
from minigpt4.preflight.machine import device_faults, disk_faults, estimate, memory_warning
from minigpt4.preflight.memory import memory_line, memory_table
from minigpt4.preflight.plan import Plan, Purpose, make_plan
from minigpt4.preflight.validation_checks import validation_faults
from minigpt4.preflight.weight_files import weight_faults
from minigpt4.registry import IMAGE_PROCESSORS, Fault, defaults
from minigpt4.runners.lr_schedules import build_lr_schedule

Check = Callable[[Plan], list[Fault]]

logger = logging.getLogger(__name__)


def check_training(config: Config) -> None:
    """Hold a training's config whole.

    Raises:
        ConfigError: one line for every fault.
    """
    preflight(config, "training")


def check_evaluation(config: Config) -> None:
    """Hold an evaluation's config; its run may lack what only a training needs.

    Raises:
        ConfigError: one line for every fault.
    """
    preflight(config, "evaluation")


def preflight(
    config: Config, purpose: Purpose, device: str | None = None, others: list[Fault] | None = None
) -> Plan:
    """Find everything that is wrong with a config and this machine for it.

    Args:
        config: As loaded.
        purpose: What will be done with it.
        device: Of a chat: what its command line says.
        others: Faults of the command line, told with those of the config.

    Returns:
        What the config says, without a fault; a memory that seems too small has been warned of.

    Raises:
        ConfigError: one line for every fault.
    """
    partial = {"evaluation": ("run",), "caching": ("model", "run")}.get(purpose, ())
    sections = ("model",) if purpose == "chat" else ("model", "datasets", "run")
    faults = [*(others or []), *find_faults(config, sections, partial), *check_chat(config)]
    plan = make_plan(config, purpose, faults, device)
    for check in (*_CHECKS["all"], *_CHECKS[purpose]):
        faults += check(plan)
    raise_faults(config.path, faults)
    if warning := memory_warning(plan):
        logger.warning("%s: %s", config.path, warning)
    return plan


def purpose_of(config: Config) -> Purpose:
    """What a YAML describes: whatever sets a learning rate is a training."""
    if config.run.get("evaluate"):
        return "evaluation"
    # A chat's YAML names a task at most.
    return "training" if {"max_epoch", "init_lr"} & config.run.keys() else "chat"


def memory_report(plan: Plan) -> str | None:
    """The estimate of the memory that a plan needs; None where dimensions are unknown."""
    found = estimate(plan)
    return memory_table(*found) if found else None


def chat_memory(plan: Plan) -> str | None:
    """The estimate of the memory that a chat needs where it will run, in one line."""
    found = estimate(plan)
    return memory_line(*found) if found else None


def described(config: Config) -> str:
    """The merged config as YAML, and behind each value where it came from."""
    return describe(config, asdict(GenerationOptions()))


def _schedule_faults(plan: Plan) -> list[Fault]:
    given = {name: value for name, value in plan.run.items() if value is not None}
    settings: dict[str, Any] = {"iters_per_epoch": 1, "lr_decay_rate": None} | given
    needed = ("init_lr", "min_lr", "max_epoch", "lr_sched", "warmup_steps", "warmup_lr")
    if not all(name in settings for name in needed) or _is_faulty(plan, "lr_decay_rate"):
        return []
    try:
        build_lr_schedule(settings, settings["iters_per_epoch"])
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        return [Fault(key, text)]
    return []


def _is_faulty(plan: Plan, name: str) -> bool:
    """Whether the run says something under a name that is not sound."""
    return name in plan.config.run and name not in plan.run


def _batch_faults(plan: Plan) -> list[Fault]:
    if plan.run.get("batch_size_train") or _is_faulty(plan, "batch_size_train"):
        return []
    lacking = [
        name
        for name, entry in plan.datasets.items()
        if "batch_size" in entry and not entry["batch_size"]
    ]
    if not lacking:
        return []
    text = f"missing, and datasets.{lacking[0]} has no batch_size of its own"
    return [Fault("run.batch_size_train", text)]


def _length_faults(plan: Plan) -> list[Fault]:
    """An epoch without a length: a folder has one, streams of shards and a mix have none."""
    told = _is_faulty(plan, "iters_per_epoch") or plan.run.get("iters_per_epoch")
    endless = [
        isinstance(entry.get("build_info"), ShardStorage)
        or (plan.config.builder_of(name) == "pairs" and names_shards(entry.get("storage") or ""))
        for name, entry in plan.datasets.items()
    ]
    if told or not (len(plan.config.datasets) > 1 or any(endless)):
        return []
    return [Fault("run.iters_per_epoch", "missing; streams of shards have no length")]


def _ratio_faults(plan: Plan) -> list[Fault]:
    ratios = [entry.get("sample_ratio", 1.0) for entry in plan.datasets.values()]
    if ratios and not any(ratios):
        name = next(iter(plan.datasets))
        text = "every sample_ratio is 0; give at least one data set weight"
        return [Fault(f"datasets.{name}.sample_ratio", text)]
    return []


def _image_size_faults(plan: Plan) -> list[Fault]:
    faults = []
    model_size = plan.model.get("image_size")
    for name, entry in plan.datasets.items():
        for split, spec in (entry.get("vis_processor") or {}).items():
            size = (defaults(IMAGE_PROCESSORS.get(spec["name"])) | spec).get("image_size")
            if None not in (size, model_size) and size != model_size:
                key = f"datasets.{name}.vis_processor.{split}.image_size"
                faults.append(Fault(key, f"{size}, but model.image_size is {model_size}"))
        if plan.purpose == "chat":
            break  # it takes the first one's
    return faults


def _precision_faults(plan: Plan) -> list[Fault]:
    return precision_faults(plan.model, plan.run)


def _sharding_faults(plan: Plan) -> list[Fault]:
    return sharding_faults(plan.model, plan.run)


def _device_map_faults(plan: Plan) -> list[Fault]:
    return device_map_faults(plan.model, plan.purpose)


def _dimension_faults(plan: Plan) -> list[Fault]:
    """Dimensions that no tower can have."""
    faults = []
    encoder, former, pixels = plan.encoder, plan.q_former, plan.model.get("image_size")
    if encoder:
        faults += _heads_faults("visual_encoder", "embed_dim", encoder.embed_dim, encoder.num_heads)
        patches = pixels // encoder.patch_size if pixels else None
        if patches == 0:
            text = f"{pixels} pixels are less than a patch ({encoder.patch_size})"
            faults.append(Fault("model.image_size", text))
        elif patches and plan.model.get("has_qformer") is False and patches**2 % 4:
            text = "without a Q-Former the patches must be a multiple of 4"
            faults.append(Fault("model.image_size", text))
    if former:
        faults += _heads_faults(
            "q_former", "hidden_size", former.hidden_size, former.num_attention_heads
        )
    return faults


def _heads_faults(part: str, name: str, width: int, heads: int) -> list[Fault]:
    if width % heads == 0:
        return []
    return [
        Fault(f"model.{part}.{name}", f"{width} is no multiple of the number of heads, {heads}")
    ]


def _evaluation_faults(plan: Plan) -> list[Fault]:
    faults = []
    if "output_dir" not in plan.config.run:
        faults.append(Fault("run.output_dir", "missing; the results of an evaluation go there"))
    if plan.config.run.get("resume_ckpt_path"):
        text = "is of a training; name the projection to evaluate in model.ckpt"
        faults.append(Fault("run.resume_ckpt_path", text))
    return faults


_CHECKS: dict[str, tuple[Check, ...]] = {
    "all": (
        _dimension_faults,
        _image_size_faults,
        _device_map_faults,
        weight_faults,
        device_faults,
    ),
    "training": (
        _precision_faults,
        _sharding_faults,
        _schedule_faults,
        _batch_faults,
        _length_faults,
        _ratio_faults,
        validation_faults,
        feature_faults,
        sample_faults,
        disk_faults,
    ),
    "evaluation": (_precision_faults, _sharding_faults, _evaluation_faults, sample_faults),
    "caching": (_precision_faults, sample_faults, tower_faults),
    "chat": (),
}
