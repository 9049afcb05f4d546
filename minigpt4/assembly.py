"""Assembly: a checked config → accelerator, data sets, model, task, and the trainer's parts."""

import copy
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from minigpt4.checked import CheckedConfig
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import DataSet
from minigpt4.errors import ConfigError, shown
from minigpt4.models import Precision
from minigpt4.models.build import choose_dtype
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.registry import LR_SCHEDULES, TASKS, Bound, visible_parameters
from minigpt4.runners.bad_samples import BadSampleLog
from minigpt4.runners.distributed import Distributed, StopSignals
from minigpt4.runners.lr_schedules import LRSchedule
from minigpt4.runners.nonfinite import NonFiniteGuard
from minigpt4.runners.optimizer import OptimizerStep
from minigpt4.runners.options import ComputeOptions, RunOptions
from minigpt4.runners.resuming import ResumePoint
from minigpt4.runners.run_log import Meter, RunLog
from minigpt4.runners.trainer import Validator
from minigpt4.tasks import Task


def build_accelerator(run: ComputeOptions) -> Accelerator:
    """Return processes and device of this run, its seed set; preflight has checked the device."""
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # Without cpu=True, accelerate on a machine without GPU believes every process to be rank 0.
    use_cpu = run.device == "cpu" or (run.device == "auto" and not torch.cuda.is_available())
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _meet_again("gloo" if use_cpu else "nccl")
    accelerator = Accelerator(cpu=use_cpu)
    set_seed(run.seed + accelerator.process_index)
    return accelerator


def _meet_again(backend: str) -> None:
    """Join the processes of a torchrun restart.

    Its store still holds the addresses of the dead processes: each restart gets its own part.
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


def build_datasets(checked: CheckedConfig, images: bool = False) -> list[DataSet]:
    """Return the data sets; with ``images``, images even where the YAML names cached features."""
    datasets = []
    for name, bound in checked.datasets.items():
        made = (_without_features(bound) if images else bound).build(name=name)
        if not isinstance(made, DataSet):  # a plug-in's
            raise ConfigError(f"datasets.{name}: its builder gives {shown(made)}, no DataSet")
        datasets.append(made)
    return datasets


def _without_features(bound: Bound) -> Bound:
    options = copy.copy(bound.options)
    if "features" in vars(options):
        vars(options)["features"] = None
    return Bound(bound.entry, options)


def chosen_precision(checked: CheckedConfig) -> tuple[str, Precision]:
    """Return key and value of what decides the arithmetic of the frozen parts."""
    run = checked.run
    if not run.amp:  # the original's word for fp32
        return "run.amp", "fp32"
    if run.precision != "auto":
        return "run.precision", run.precision
    return "model.precision", getattr(checked.model.options, "precision", "auto")


def chosen_dtype(checked: CheckedConfig, device: torch.device) -> torch.dtype:
    """Return the arithmetic of the frozen parts; ``ConfigError`` if the device lacks it."""
    key, precision = chosen_precision(checked)
    return choose_dtype(precision, device, key)


def build_model(checked: CheckedConfig, device: torch.device) -> MiniGPT4:
    """Return the model in this run's precision, its weights loaded, sharded if ``shard`` is set."""
    dtype, from_features = chosen_dtype(checked, device), checked.from_features
    build = functools.partial(
        checked.model.build, device=device, dtype=dtype, from_features=from_features
    )
    if checked.run.shard == "none":
        return build()
    from minigpt4.models.speed.sharding import has_several_processes, shard_language_model

    # A model that is too large for one device is loaded on the CPU.
    model: MiniGPT4 = build(stay_on_cpu=has_several_processes())
    shard_language_model(model, device)
    return model


def build_task(checked: CheckedConfig, model: MiniGPT4, rank: int, **more: Any) -> Task:
    """Return the task; it takes what it needs of prompts, seed, rank, template and ``more``."""
    run = checked.run
    shared = {"prompts": model.prompts, "seed": run.seed, "template": checked.template}
    return TASKS.build(run.task, {}, rank=rank, **shared, **more)


def build_schedule(checked: CheckedConfig, iters_per_epoch: int) -> LRSchedule:
    """Return the learning-rate schedule; it receives the run keys that its signature names."""
    run, entry = checked.run, LR_SCHEDULES.get(checked.run.lr_sched)
    wanted, known = visible_parameters(entry)[1], visible_parameters(RunOptions)[1]
    given = {name: getattr(run, name) for name in wanted if name in known} | checked.schedule
    if "iters_per_epoch" in wanted:
        given["iters_per_epoch"] = iters_per_epoch
    return LR_SCHEDULES.build(run.lr_sched, given)


def epoch_length(checked: CheckedConfig, datasets: Sequence[DataSet], world_size: int) -> int:
    """Return the steps of an epoch: ``iters_per_epoch``, else once through one folder data set."""
    run = checked.run
    if run.iters_per_epoch:
        return run.iters_per_epoch
    if len(datasets) != 1 or datasets[0].length is None:
        raise ConfigError("run.iters_per_epoch: missing; streams of shards have no length")
    batch_size = datasets[0].batch_size or run.batch_size_train
    assert batch_size is not None  # preflight
    return math.ceil(datasets[0].length / (batch_size * world_size))


def build_runner(
    checked: CheckedConfig,
    processes: Distributed,
    model: MiniGPT4,
    datasets: Sequence[DataSet],
    iters_per_epoch: int,
    start: ResumePoint,
    validation: Validator | None,
) -> Any:
    """Return the runner with those parts that its signature names; ours takes all."""
    run, config, folder = checked.run, checked.config.resolved(), start.folder.path
    total = run.max_epoch * iters_per_epoch
    task, stop = build_task(checked, model, processes.rank), StopSignals(processes)
    guard = NonFiniteGuard(run, folder / "nonfinite.jsonl", processes, model, task)
    log = RunLog(folder, total, iters_per_epoch, start.step, run.trackers, config, processes.main)
    reading = (run.batch_size_train, run.num_workers, run.seed, processes.rank, processes.count)
    pin_memory = processes.device.type == "cuda"
    loader = MixedLoader(datasets, *reading, pin_memory, run.max_bad_fraction)
    return checked.runner.build(
        model=model,
        task=task,
        loader=loader,
        optimizer=OptimizerStep(run, model, processes, guard, stop),
        schedule=build_schedule(checked, iters_per_epoch),
        iters_per_epoch=iters_per_epoch,
        processes=processes,
        stop=stop,
        start=start,
        log=log,
        meter=Meter(total - start.step, processes.count, processes.device),
        bad_samples=BadSampleLog(folder / "bad_samples.jsonl", processes),
        validation=validation,
        config=config,
    )
