"""Machine: whether this one can do what a config asks for: devices, processes, disk, memory."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import torch

from minigpt4.config.checks import nearest_existing
from minigpt4.errors import ConfigError, one_line
from minigpt4.models.build import choose_dtype
from minigpt4.models.language_model import Quantize
from minigpt4.preflight.draft import Draft
from minigpt4.preflight.memory import (
    TOWERS,
    Need,
    chat_need,
    gigabytes,
    too_small,
    trained_numbers,
    training_need,
)
from minigpt4.registry import Fault, UnknownOptionError

_SAVED = 12  # bytes for each trained number in a checkpoint: itself and two moments, in fp32
_LOGS = 10_000_000  # of a run: config, figures, the overhead of a checkpoint's form
_CHARACTERS = 3  # of a prompt in one token, at least


def device_faults(draft: Draft) -> Iterator[Fault]:
    """Yield devices that do not exist, more processes than GPUs, arithmetic a CPU does not have."""
    if draft.purpose != "chat":  # a chat's device is on its command line
        asked = draft.checked.config.run.get("device")
        if asked == "cuda" and not torch.cuda.is_available():
            text = (
                "cuda, but this machine has no usable GPU; add --options run.device=cpu (or auto)"
            )
            yield Fault("run.device", text)
        if asked == "mps" and not torch.backends.mps.is_available():
            yield Fault("run.device", "mps, but this machine has none; use auto or cpu")
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        gpus = torch.cuda.device_count() if draft.device == "cuda" else 0
        if 0 < gpus < (int(processes) if processes.isdecimal() else 1):
            text = f"torchrun started {processes} processes on {gpus} GPUs; --nproc-per-node {gpus}"
            yield Fault("run.device", text)
    if draft.device == "cpu":
        key, precision = draft.precision
        try:
            choose_dtype(precision, torch.device("cpu"), key)
        except ConfigError as error:
            yield Fault(key, str(error).removeprefix(f"{key}: "))


def disk_faults(draft: Draft) -> Iterator[Fault]:
    """Yield an output folder without room for a checkpoint of each epoch."""
    folder, epochs = draft.run.output_dir, draft.run.max_epoch
    each = sum(trained_numbers(draft.meta_model, draft.model.trainable).values()) * _SAVED
    # States to resume from are kept besides; a file is written next to the one that it replaces.
    needed = each * (epochs + draft.run.keep_last + 1) + _LOGS
    try:
        free = shutil.disk_usage(nearest_existing(folder)).free
    except OSError as error:
        yield Fault("run.output_dir", f"{folder}: {one_line(error)}; choose another folder")
        return
    if free < needed:
        text = (
            f"{folder} has {gigabytes(free)} free, and {epochs} checkpoints of {gigabytes(each)} "
            f"need about {gigabytes(needed)} with all that a run keeps beside them; free space or "
            "choose another folder"
        )
        yield Fault("run.output_dir", text)


def estimate(draft: Draft) -> tuple[Need, int] | None:
    """Return the memory that is needed where it will run, and the batch; None: not known."""
    try:
        return _estimate(draft)
    except UnknownOptionError:
        return None


def _estimate(draft: Draft) -> tuple[Need, int] | None:
    model, options = draft.meta_model, draft.model
    quantize, gpu = _quantize(draft), draft.device != "cpu"
    if draft.purpose == "training":
        targets = options.max_txt_len + 1
        tokens = 1 + _prompt_tokens(draft) + options.image_tokens + targets
        again = draft.run.gradient_checkpointing
        need = training_need(model, tokens, targets, quantize, options.trainable, again, gpu)
        if draft.checked.from_features:
            parts = {name: size for name, size in need.parts.items() if name not in TOWERS}
            need = replace(need, parts=parts)
        batch = _training_batch(draft)
        return (need, batch) if batch else None
    chat = draft.checked.chat
    kept = chat.kept_tokens if draft.purpose == "chat" else 0
    batch = 1 if draft.purpose == "chat" else draft.run.batch_size_eval
    return chat_need(model, chat.max_length, quantize, kept, gpu), batch * chat.num_beams


def memory_warning(draft: Draft) -> str | None:
    """Return what is wrong, in the main process, with a memory that seems too small."""
    main = os.environ.get("RANK", "0") == "0"
    memory = total_memory(draft.device)
    spread = getattr(draft.model, "device_map", "none") == "auto"  # it takes what there is
    found = estimate(draft) if main and memory and not spread else None
    return too_small(*found, memory) if found else None


def total_memory(device: str | None) -> int:
    """Return the bytes of the first GPU or of the main memory; 0 where they are not known."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else 0


def _training_batch(draft: Draft) -> int | None:
    """Samples that one process holds at once."""
    options = [bound.options for bound in draft.checked.datasets.values()]
    own = [getattr(each, "batch_size", None) or draft.run.batch_size_train for each in options]
    return max((size for size in own if size), default=None)


def _quantize(draft: Draft) -> Quantize:
    has_library = importlib.util.find_spec("bitsandbytes") is not None
    quantize = draft.model.quantize
    low = quantize == "none" and draft.model.low_resource and has_library
    return "int8" if low else quantize


def _prompt_tokens(draft: Draft) -> int:
    """Tokens of the longest prompt, estimated."""
    prompts = draft.model.load_prompts()
    return max((len(prompt) // _CHARACTERS for prompt in prompts), default=0)
