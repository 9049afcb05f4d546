"""Machine: whether this one can do what a plan asks for: devices, processes, disk, memory."""

import importlib.util
import os
import shutil
from dataclasses import replace

import torch

from minigpt4.config.checks import nearest_existing
from minigpt4.errors import ConfigError, one_line
from minigpt4.models.build import choose_dtype, load_prompts
from minigpt4.models.speed.quantization import Quantize
from minigpt4.models.towers import PATCHES_PER_TOKEN
from minigpt4.preflight.memory import (
    TOWERS,
    Need,
    chat_need,
    gigabytes,
    too_small,
    trained_numbers,
    training_need,
)
from minigpt4.preflight.meta_model import MetaModel, meta_model, precision_of
from minigpt4.preflight.plan import Plan
from minigpt4.registry import Fault

_SAVED = 12  # bytes for each trained number in a checkpoint: itself and two moments, in fp32
_LOGS = 10_000_000  # of a run: config, figures, the overhead of a checkpoint's form
_CHARACTERS = 3  # of a prompt in one token, at least


def device_faults(plan: Plan) -> list[Fault]:
    """Devices that are not there, more processes than GPUs, arithmetic that a CPU does not have."""
    faults = []
    asked = plan.run.get("device")
    if plan.purpose != "chat":  # a chat's device stands on its command line
        if asked == "cuda" and not torch.cuda.is_available():
            text = (
                "cuda, but this machine has no usable GPU; add --options run.device=cpu (or auto)"
            )
            faults.append(Fault("run.device", text))
        if asked == "mps" and not torch.backends.mps.is_available():
            faults.append(Fault("run.device", "mps, but this machine has none; use auto or cpu"))
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        gpus = torch.cuda.device_count() if plan.device == "cuda" else 0
        if 0 < gpus < (int(processes) if processes.isdecimal() else 1):
            text = f"torchrun started {processes} processes on {gpus} GPUs; --nproc-per-node {gpus}"
            faults.append(Fault("run.device", text))
    if plan.device == "cpu":
        key, precision = precision_of(plan)
        try:
            choose_dtype(precision, torch.device("cpu"), key)
        except ConfigError as error:
            faults.append(Fault(key, str(error).removeprefix(f"{key}: ")))
    return faults


def disk_faults(plan: Plan) -> list[Fault]:
    """An output folder without room for a checkpoint of each epoch."""
    folder, epochs = plan.run.get("output_dir"), plan.run.get("max_epoch")
    trainable, kept = plan.model.get("trainable") or (), plan.run.get("keep_last") or 0
    model = meta_model(plan)
    if not isinstance(folder, str) or epochs is None or model is None:
        return []
    each = sum(trained_numbers(model, trainable).values()) * _SAVED
    # What a run goes on with is kept besides; a file is written beside the one that it replaces.
    needed = each * (epochs + kept + 1) + _LOGS
    try:
        free = shutil.disk_usage(nearest_existing(folder)).free
    except OSError as error:
        return [Fault("run.output_dir", f"{folder}: {one_line(error)}; choose another folder")]
    if free >= needed:
        return []
    text = (
        f"{folder} has {gigabytes(free)} free, and {epochs} checkpoints of {gigabytes(each)} "
        f"need about {gigabytes(needed)} with all that a run keeps beside them; free space or "
        "choose another folder"
    )
    return [Fault("run.output_dir", text)]


def estimate(plan: Plan) -> tuple[Need, int] | None:
    """Return the memory that a plan needs where it will run, and its batch; None: not known."""
    model, batch, answer = meta_model(plan), _batch(plan), plan.model.get("max_txt_len")
    quantize, gpu = _quantize(plan), plan.device != "cpu"
    if model is None or batch is None or answer is None:
        return None
    if plan.purpose == "training":
        targets = answer + 1
        trainable = plan.model.get("trainable") or ()
        again = plan.run.get("gradient_checkpointing") is True
        tokens = 1 + _prompt_tokens(plan) + _image_tokens(model) + targets
        need = training_need(model, tokens, targets, quantize, trainable, again, gpu)
        if plan.from_features:
            parts = {name: size for name, size in need.parts.items() if name not in TOWERS}
            need = replace(need, parts=parts)
        return need, batch
    beams, longest = plan.chat.get("num_beams", 1), plan.chat.get("max_length", 2000)
    kept = plan.chat.get("kept_tokens", 0) if plan.purpose == "chat" else 0
    return chat_need(model, longest, quantize, kept, gpu), batch * beams


def memory_warning(plan: Plan) -> str | None:
    """Return a complaint of the main process about a memory that seems too small."""
    main = os.environ.get("RANK", "0") == "0"
    spread = plan.model.get("device_map") == "auto"  # it takes what there is
    memory = total_memory(plan.device)
    found = estimate(plan) if main and memory and not spread else None
    return too_small(*found, memory) if found else None


def total_memory(device: str | None) -> int:
    """Return the bytes of the first GPU or of the main memory; 0 where they are not known."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else 0


def _image_tokens(model: MetaModel) -> int:
    if model.query_tokens is not None:
        return model.query_tokens.shape[1]
    patches = model.get_parameter("visual_encoder.pos_embed").shape[1] - 1
    return patches // PATCHES_PER_TOKEN


def _batch(plan: Plan) -> int | None:
    """Samples that one process holds at once."""
    if plan.purpose == "chat":
        return 1
    if plan.purpose == "evaluation":
        return plan.run.get("batch_size_eval")
    own = [
        entry.get("batch_size") or plan.run.get("batch_size_train")
        for entry in plan.datasets.values()
    ]
    return max((size for size in own if size), default=None)


def _quantize(plan: Plan) -> Quantize:
    quantize: Quantize = plan.model.get("quantize", "none")
    has_library = importlib.util.find_spec("bitsandbytes") is not None
    low = quantize == "none" and plan.model.get("low_resource") and has_library
    return "int8" if low else quantize


def _prompt_tokens(plan: Plan) -> int:
    """Tokens of the longest prompt, estimated."""
    path, template = plan.model.get("prompt_path"), plan.model.get("prompt_template") or ""
    prompts = load_prompts(path, template) if path and os.path.isfile(path) else []
    return max((len(prompt) // _CHARACTERS for prompt in prompts), default=0)
