"""Options of a run: the ``run:`` section of a YAML, in groups; its keys stay flat."""

from dataclasses import dataclass
from typing import Annotated, Literal

from minigpt4.config.checks import (
    NotNegative,
    OutputFolder,
    Positive,
    PositiveFloat,
    check_fraction,
    check_not_negative,
)
from minigpt4.models import Precision
from minigpt4.models.minigpt4 import Packing
from minigpt4.registry import LR_SCHEDULES, METRICS, TASKS
from minigpt4.runners.run_folder import check_resumable

Device = Literal["auto", "cuda", "cpu", "mps"]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Length of the run and learning rate.

    Attributes:
        init_lr: Peak learning rate.
        min_lr: Learning rate at the end.
        max_epoch: Number of epochs; an epoch ends with a checkpoint.
        iters_per_epoch: Steps (micro-batches) per epoch; left out, once through a folder data set.
        lr_sched: Name of the schedule.
        warmup_lr: Learning rate of the first step; negative means ``init_lr``.
        warmup_steps: Steps of warm-up.
        lr_decay_rate: Factor per epoch of ``linear_warmup_step_lr``.
    """

    init_lr: PositiveFloat
    min_lr: Annotated[float, check_not_negative]
    max_epoch: Positive
    iters_per_epoch: Positive | None = None
    lr_sched: Annotated[str, LR_SCHEDULES] = "linear_warmup_cosine_lr"
    warmup_lr: float = -1.0
    warmup_steps: NotNegative = 0
    lr_decay_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Batches and how they are read.

    Attributes:
        batch_size_train: Samples per process and step; a data set's own batch_size goes before.
        batch_size_eval: Samples per process and step of an evaluation.
        num_workers: Worker processes per data set.
        max_bad_fraction: Maximum fraction of a data set's latest samples that may be bad.
    """

    batch_size_train: Positive | None = None
    batch_size_eval: Positive = 16
    num_workers: NotNegative = 4
    max_bad_fraction: Annotated[float, check_fraction] = 0.5


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer steps.

    Attributes:
        weight_decay: Weight decay of parameters with two or more dimensions.
        accum_grad_iters: Steps per optimizer step.
        divide_accumulated_loss: False restores the original's undivided sum, for parity.
        max_grad_norm: Clip the gradient to this norm; off by default, as in the original.
        on_nonfinite: What to do when a loss or gradient is Inf or NaN: end the run, or leave out
            the optimizer's step.
        max_nonfinite: Number of left-out steps after which the run ends nevertheless.
    """

    weight_decay: Annotated[float, check_not_negative] = 0.05
    accum_grad_iters: Positive = 1
    divide_accumulated_loss: bool = True
    max_grad_norm: PositiveFloat | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_nonfinite: Positive = 100


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Device, arithmetic and processes.

    Attributes:
        seed: Seed of everything random.
        amp: False computes in fp32 on a GPU too.
        precision: Arithmetic of the frozen parts; ``auto`` leaves it to ``model.precision``.
        shard: ``fsdp`` spreads the frozen language model over the processes.
        packing: Compute no padding; ``auto`` does so where a trial finds that no number changes.
        compile: Fuse the layers' kernels; the first steps are slow, later ones quicker on a GPU.
        gradient_checkpointing: Keep little of the language model's layers for the backward pass and
            compute them again there: for small memory, about 1.4 times as slow.
        device: ``auto`` takes a GPU where there is one.
        deterministic: Bit for bit the same numbers on a GPU too, for some speed.
        timeout: Seconds without an answer after which another process counts as lost.
    """

    seed: int = 42
    amp: bool = True
    precision: Precision = "auto"
    shard: Literal["none", "fsdp"] = "none"
    packing: Packing = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    device: Device = "auto"
    deterministic: bool = False
    timeout: PositiveFloat = 1800.0


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Validation and evaluation.

    Attributes:
        metrics: What an evaluation scores outputs with; averaged over the samples.
        valid_splits: ``[val]`` measures the model on the validation set of the data sets
            (``val_storage``, ``val_fraction``): before the first step, and after every
            ``eval_every_steps``.
        eval_every_steps: Steps between two validations; left out, each epoch ends with one.
        valid_captions: Samples of each data set whose text is generated in a validation, always the
            same ones; ``metrics`` score them.
        valid_control: Validate also with each image exchanged for another sample's: what the
            model knows without looking.
        best_metric: Figure whose best value keeps ``checkpoint_best.pth``: ``loss``,
            ``token_accuracy``, ``perplexity`` or one of ``metrics``, as the mean over the data
            sets, or of one as ``<data set>/loss``.
        best_mode: Whether the smallest or the largest is best; ``auto`` knows it of the program's
            own figures, and takes the largest of a plug-in's.
        evaluate: True trains nothing, and evaluates once on the data sets.
    """

    metrics: tuple[Annotated[str, METRICS], ...] = ("exact_match",)
    valid_splits: tuple[Literal["val"], ...] = ()
    eval_every_steps: Positive | None = None
    valid_captions: NotNegative = 8
    valid_control: bool = False
    best_metric: str = "loss"
    best_mode: Literal["auto", "min", "max"] = "auto"
    evaluate: bool = False


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """What is written, and what to resume from.

    Attributes:
        output_dir: Folder in which this run's folder is made.
        resume: ``auto`` resumes the newest unfinished run of the same config, if there is one.
        resume_ckpt_path: What to resume: a run's folder, which this run then continues; or a
            state or an epoch's checkpoint, from which it continues in a folder of its own.
        save_every_steps: Steps between states to resume from; an epoch ends with one, too.
        keep_last: Number of states that are kept; checkpoints of epochs always are.
        trackers: ``tensorboard``, ``wandb``; in addition to ``log.txt``.
        log_freq: Steps between lines in ``log.txt``.
    """

    output_dir: OutputFolder
    resume: Literal["auto", "never"] = "never"
    resume_ckpt_path: Annotated[str, check_resumable] | None = None
    save_every_steps: Positive = 500
    keep_last: Positive = 2
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    log_freq: Positive = 50


@dataclass(frozen=True, kw_only=True)
class RunOptions(
    FolderOptions, ValidationOptions, ComputeOptions, OptimizerOptions, DataOptions, ScheduleOptions
):
    """All options of a run.

    Attributes:
        task: Name of the task.
    """

    task: Annotated[str, TASKS] = "image_text_pretrain"
