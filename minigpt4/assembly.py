"""What a run needs before its first step: processes, data, model, schedule, parameter groups."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from minigpt4.chat import generation_options
from minigpt4.config import Config
from minigpt4.conversation import Template
from minigpt4.datasets.feature_source import FeatureSource
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import ConfigError, shown
from minigpt4.models.build import Precision, choose_dtype
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.sharding import (
    has_several_processes,
    shard_language_model,
    sharding_faults,
)
from minigpt4.registry import BUILDERS, MODELS, RUNNERS, Fault, defaults

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
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("run.device: mps, but this machine has none; use auto or cpu")
    # Without cpu=True, accelerate on a machine without GPU believes every process to be rank 0.
    use_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _meet_again("gloo" if use_cpu else "nccl")
    return Accelerator(cpu=use_cpu)


def _meet_again(backend: str) -> None:
    """Join the processes of a torchrun restart.

    Its store still holds the addresses of the processes that died, and one that is early would
    try to reach them: each restart gets a part of the store to itself.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own_server = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    rank = int(os.environ["RANK"])
    store = TCPStore(address, port, is_master=own_server and rank == 0)
    distributed.init_process_group(
        backend,
        store=PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store),
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def make_deterministic() -> None:
    """The same numbers on a GPU each time, for some speed; a CPU gives them anyway.

    Raises:
        RuntimeError: later, by torch, where an operation has no such kernel.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def run_settings(config: Config) -> dict[str, Any]:
    """The run section, with the runner's own defaults where it says nothing."""
    runner = RUNNERS.get(config.run.get("runner", "runner_base"))
    return defaults(runner) | config.run_options()


def build_datasets(config: Config, pictures: bool = False) -> list[DataSet]:
    """The data sets, in the order of the YAML.

    Args:
        config: As loaded.
        pictures: Read them even where the YAML names cached features.
    """
    unused = {"features"} if pictures else set()
    datasets = []
    for name in config.datasets:
        options = config.dataset_options(name)
        used = {key: value for key, value in options.items() if key not in unused}
        made = BUILDERS.build(config.builder_of(name), used, name=name)
        if not isinstance(made, DataSet):  # a plug-in's
            raise ConfigError(f"datasets.{name}: its builder gives {shown(made)}, no DataSet")
        datasets.append(made)
    return datasets


def all_cached(datasets: Sequence[DataSet]) -> bool:
    """Whether no data set reads a picture, so that the towers have nothing to do."""
    return all(isinstance(dataset.source, FeatureSource) for dataset in datasets)


def build_model(config: Config, device: torch.device, from_features: bool = False) -> MiniGPT4:
    """The model with its weights loaded, in this run's precision, sharded if it says so.

    Args:
        config: As loaded.
        device: Where it runs.
        from_features: Without the towers; see :func:`all_cached`.

    Raises:
        MiniGPT4Error: for settings that contradict each other, or weights that do not fit together.
    """
    settings, options = run_settings(config), config.model_options()
    model_settings = defaults(MODELS.get(config.arch)) | options
    faults = precision_faults(model_settings, settings) + sharding_faults(model_settings, settings)
    if faults:
        raise ConfigError("\n".join(f"{fault.key}: {fault.text}" for fault in faults))
    if "precision" in model_settings:
        key, precision = chosen_precision(model_settings, settings)
        choose_dtype(precision, device, key)
        options["precision"] = precision
    sharded = settings["shard"] == "fsdp"
    # What one device does not hold must not be put there whole first.
    asked = {"stay_on_cpu": sharded and has_several_processes(), "from_features": from_features}
    injected = {name: True for name, wanted in asked.items() if wanted}
    model: MiniGPT4 = MODELS.build(config.arch, options, device=device, **injected)
    if sharded:
        shard_language_model(model, device)
    return model


def chosen_precision(model: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, Precision]:
    """Key and value of what decides the arithmetic of the frozen parts.

    ``run.amp: False`` is the original's word for fp32, ``True`` leaves the choice to the others.

    Args:
        model: The section with its defaults.
        run: Likewise.
    """
    if not run["amp"]:
        return "run.amp", "fp32"
    if run["precision"] != "auto":
        return "run.precision", run["precision"]
    return "model.precision", model["precision"]


def precision_faults(model: Mapping[str, Any], run: Mapping[str, Any]) -> list[Fault]:
    """Half precision beside ``run.amp: False``; sections with their defaults."""
    text = "{} contradicts run.amp: False, which computes in fp32; take one of them out"
    return [
        Fault(f"{section}.precision", text.format(settings["precision"]))
        for section, settings in (("model", model), ("run", run))
        if run.get("amp") is False and settings.get("precision") in ("fp16", "bf16")
    ]


def build_template(config: Config) -> Template:
    """How conversations are written: the chat's template."""
    template = generation_options(config).template
    assert isinstance(template, Template)  # loaded
    return template


def epoch_length(settings: dict[str, Any], datasets: Sequence[DataSet], world_size: int) -> int:
    """Steps of an epoch: ``run.iters_per_epoch``, else once through a single folder data set.

    Raises:
        ConfigError: for shards without ``iters_per_epoch``; their streams have no end.
    """
    if settings["iters_per_epoch"]:
        return int(settings["iters_per_epoch"])
    if len(datasets) != 1 or datasets[0].length is None:
        raise ConfigError("run.iters_per_epoch: missing; streams of shards have no length")
    batch_size = datasets[0].batch_size or settings["batch_size_train"]
    return math.ceil(datasets[0].length / (batch_size * world_size))
