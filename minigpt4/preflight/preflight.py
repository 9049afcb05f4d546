"""Preflight: everything that can be wrong with a run, found before anything heavy loads.

Each check takes the draft and yields errors; none stops another, and all are reported at once. A
check is cheap: it reads the headers of weights, one sample of a data set, the state of the machine.
"""

import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from minigpt4.assembly import build_schedule
from minigpt4.checked import CheckedConfig, Purpose, bind_sections, run_check
from minigpt4.config import Config, raise_faults
from minigpt4.conversation.options import GenerationOptions
from minigpt4.datasets.options import DataSetOptions
from minigpt4.datasets.samples import BadSample, DataSet, Source, read_sample
from minigpt4.errors import ConfigError, DataError, Fault
from minigpt4.preflight.draft import (
    Draft,
    ckpt_faults,
    language_model_faults,
    resumed_faults,
    tower_faults,
)
from minigpt4.preflight.machine import (
    device_faults,
    disk_faults,
    estimate,
    memory_line,
    memory_table,
    memory_warning,
)
from minigpt4.registry import Bound

Check = Callable[[Draft], Iterable[Fault]]

# A few broken samples are skipped in a training too; so many at the start are a wrong data set.
_TRIED = 100

logger = logging.getLogger(__name__)


def preflight(
    config: Config, purpose: Purpose, device: str | None = None, others: Sequence[Fault] = ()
) -> CheckedConfig:
    """Check a config and this machine, and warn of a memory that seems too small.

    The ``device`` of a chat and ``others`` (errors) come from its command line.

    Raises:
        ConfigError: one line for every error.
    """
    checked, faults = bind_sections(config, purpose)
    draft = Draft(checked, _device(checked, device))
    faults = [*others, *faults]
    told = {fault.key for fault in faults}  # what is wrong in itself is not compared with files
    for check in (*_CHECKS["all"], *_CHECKS[purpose]):
        faults += [fault for fault in run_check(check, draft) if fault.key not in told]
    raise_faults(config.path, faults)
    if warning := memory_warning(draft):
        logger.warning("%s: %s", config.path, warning)
    return checked


def purpose_of(config: Config) -> Purpose:
    """Return what a YAML describes: whatever sets a learning rate is a training."""
    if config.run.get("evaluate"):
        return "evaluation"
    # A chat's YAML names a task at most.
    return "training" if {"max_epoch", "init_lr"} & config.run.keys() else "chat"


def memory_report(checked: CheckedConfig, device: str | None = None) -> str | None:
    """Return the estimate of the memory that is needed; None where dimensions are unknown.

    It is a table, and one line where the ``device`` of a chat is known.
    """
    need = estimate(Draft(checked, _device(checked, device)))
    table = memory_line if device else memory_table
    return table(need) if need else None


def described(config: Config) -> str:
    """Return the merged config as YAML, and after each value where it came from."""
    from minigpt4.preflight.sources import describe

    return describe(config, asdict(GenerationOptions()))


def _device(checked: CheckedConfig, device: str | None) -> str | None:
    device = device or checked.config.run.get("device", "auto")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device if device in ("cuda", "cpu", "mps") else None


def _schedule_faults(draft: Draft) -> Iterator[Fault]:
    try:
        build_schedule(draft.checked, draft.run.iters_per_epoch or 1)
    except ConfigError as error:
        for line in str(error).splitlines():
            key, _, text = line.partition(": ")
            yield Fault(key.replace(f"{draft.run.lr_sched}.", "run."), text)


def _batch_faults(draft: Draft) -> Iterable[Fault]:
    return () if draft.run.batch_size_train else _own_batch_faults(draft)


def _own_batch_faults(draft: Draft) -> Iterator[Fault]:
    for name, bound in draft.checked.datasets.items():
        if not getattr(bound.options, "batch_size", 1):
            text = f"missing, and datasets.{name} has no batch_size of its own"
            yield Fault("run.batch_size_train", text)
            return


def _length_faults(draft: Draft) -> Iterable[Fault]:
    return () if draft.run.iters_per_epoch else _endless_faults(draft)


def _endless_faults(draft: Draft) -> Iterator[Fault]:
    """An epoch without a length: a folder has one, streams of shards and a mix have none."""
    options = [bound.options for bound in draft.checked.datasets.values()]
    endless = [own for own in options if isinstance(own, DataSetOptions) and own.is_endless]
    if len(options) > 1 or endless:
        yield Fault("run.iters_per_epoch", "missing; streams of shards have no length")


def _ratio_faults(draft: Draft) -> Iterator[Fault]:
    datasets = draft.checked.datasets
    ratios = [getattr(bound.options, "sample_ratio", 1.0) for bound in datasets.values()]
    if ratios and not any(ratios):
        text = "every sample_ratio is 0; give at least one data set weight"
        yield Fault(f"datasets.{next(iter(datasets))}.sample_ratio", text)


def _image_size_faults(draft: Draft) -> Iterator[Fault]:
    wanted = draft.model.tower.image_size
    for name, bound in draft.checked.datasets.items():
        processors: dict[str, Bound] = getattr(bound.options, "vis_processor", None) or {}
        for split, processor in processors.items():
            if (size := getattr(processor.options, "image_size", None)) not in (None, wanted):
                key = f"datasets.{name}.vis_processor.{split}.image_size"
                yield Fault(key, f"{size}, but {draft.model.tower_key('image_size')} is {wanted}")
        if draft.checked.purpose == "chat":
            return  # it takes the first one's


def _precision_faults(draft: Draft) -> Iterable[Fault]:
    return () if draft.run.amp else _half_precision_faults(draft)


def _half_precision_faults(draft: Draft) -> Iterator[Fault]:
    text = "{} contradicts run.amp: False, which computes in fp32; take one of them out"
    for section, options in (("model", draft.model), ("run", draft.run)):
        if options.precision in ("fp16", "bf16"):
            yield Fault(f"{section}.precision", text.format(options.precision))


def _sharding_faults(draft: Draft) -> Iterable[Fault]:
    return () if draft.run.shard == "none" else _unsharded_faults(draft)


def _unsharded_faults(draft: Draft) -> Iterator[Fault]:
    """What ``run.shard: fsdp`` does not go with."""
    model = draft.model
    for key, value, off in (
        ("quantize", model.quantize, "none"),
        ("low_resource", model.low_resource, False),
    ):
        if value != off:
            text = f"{value} does not go with run.shard: fsdp; set {off}, or run.shard: none"
            yield Fault(f"model.{key}", text)
    if draft.run.evaluate:
        text = (
            "fsdp is for a training: answers of different lengths do not keep processes in step; "
            "set none (model.quantize makes a language model smaller)"
        )
        yield Fault("run.shard", text)


def _device_map_faults(draft: Draft) -> Iterable[Fault]:
    return () if draft.model.device_map == "none" else _spread_faults(draft)


def _spread_faults(draft: Draft) -> Iterator[Fault]:
    """What ``model.device_map: auto`` does not go with."""
    if draft.checked.purpose == "training":
        text = "auto is to chat with or evaluate; to train, run.shard: fsdp spreads the layers"
        yield Fault("model.device_map", text)
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        text = "auto takes all GPUs for one process; start one without torchrun, or set none"
        yield Fault("model.device_map", text)


def _evaluation_faults(draft: Draft) -> Iterator[Fault]:
    run: dict[str, Any] = draft.checked.config.run
    if "output_dir" not in run:
        yield Fault("run.output_dir", "missing; the results of an evaluation go there")
    if run.get("resume_ckpt_path"):
        text = "is of a training; name the projection to evaluate in model.ckpt"
        yield Fault("run.resume_ckpt_path", text)


def _validation_faults(draft: Draft) -> Iterable[Fault]:
    run, options = draft.run, (bound.options for bound in draft.checked.datasets.values())
    stored = [own.stored for own in options if isinstance(own, DataSetOptions)]
    held_out = any(each.val_storage is not None or each.val_fraction for each in stored)
    if not (run.valid_splits or run.eval_every_steps is not None or held_out):
        return ()
    from minigpt4.preflight.validation_checks import validation_faults

    return validation_faults(draft)


def _feature_faults(draft: Draft) -> Iterable[Fault]:
    if not any(getattr(b.options, "features", None) for b in draft.checked.datasets.values()):
        return ()
    from minigpt4.preflight.feature_identity import feature_faults

    return feature_faults(draft)


def _caching_faults(draft: Draft) -> Iterable[Fault]:
    from minigpt4.preflight.feature_identity import tower_faults

    return tower_faults(draft)


def _sample_faults(draft: Draft) -> Iterator[Fault]:
    """Data sets without a readable sample at the start, be it of training or of validation."""
    for name, bound in draft.checked.datasets.items():
        if isinstance(bound.options, DataSetOptions):  # no plug-in's
            yield from run_check(functools.partial(_first_faults, draft, name), bound.options)


def _first_faults(draft: Draft, name: str, options: DataSetOptions) -> Iterator[Fault]:
    cached = draft.checked.purpose == "training" and getattr(options, "features", None) is not None
    # Of cached features the images are not read.
    for storage in (None if cached else options.stored.storage, options.stored.val_storage):
        try:
            if storage is not None:
                _read_one(*options.open_first(storage))
        except DataError as error:
            yield Fault(f"datasets.{name}", str(error))


def _read_one(origin: str, source: Source) -> None:
    """Raise a DataError with the first problem unless one of the first samples can be read."""
    unprocessed = DataSet("", source, lambda _: torch.empty(0), str)
    samples = itertools.chain.from_iterable(map(source.read, range(source.units)))
    first = None
    for raw in itertools.islice(samples, _TRIED):
        sample = read_sample(raw, unprocessed, seed="")
        if not isinstance(sample, BadSample):
            return
        first = first or f"{sample.key}: {sample.reason}"
    raise DataError(f"no readable sample at the start of {origin}; the first: {first}")


_CHECKS: dict[str, tuple[Check, ...]] = {
    "all": (
        lambda draft: draft.model.errors(),
        _image_size_faults,
        _device_map_faults,
        language_model_faults,
        ckpt_faults,
        tower_faults,
        device_faults,
    ),
    "training": (
        resumed_faults,
        _precision_faults,
        _sharding_faults,
        _schedule_faults,
        _batch_faults,
        _length_faults,
        _ratio_faults,
        _validation_faults,
        _feature_faults,
        _sample_faults,
        disk_faults,
    ),
    "evaluation": (_precision_faults, _sharding_faults, _evaluation_faults, _sample_faults),
    "caching": (_precision_faults, _sample_faults, _caching_faults),
    "chat": (),
}
