"""Machine: whether this one can do what a plan asks for: devices, processes, disk, GPU memory."""

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from minigpt4.config.checks import nearest_existing
from minigpt4.errors import one_line
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.models.speed.quantization import Quantize
from minigpt4.preflight.memory import (
    TOWERS,
    LanguageModelSize,
    ModelSize,
    Need,
    chat_need,
    gigabytes,
    read_language_model_size,
    training_need,
)
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
    for section, settings in (("model", plan.model), ("run", plan.run)):
        fp32 = section == "model" and plan.run.get("amp") is False
        if settings.get("precision") == "fp16" and plan.device == "cpu" and not fp32:
            text = "fp16 needs a GPU; use auto, fp32 or bf16 on a CPU"
            faults.append(Fault(f"{section}.precision", text))
    return faults


def disk_faults(plan: Plan) -> list[Fault]:
    """An output folder without room for a checkpoint of each epoch."""
    folder, epochs = plan.run.get("output_dir"), plan.run.get("max_epoch")
    size = _model_size(plan)
    if not isinstance(folder, str) or epochs is None or size is None:
        return []
    trained = size.projection + (size.asking if _trains_q_former(plan) else 0)
    each = trained * _SAVED
    # What a run goes on with is kept besides; a file is written beside the one that it replaces.
    kept = plan.run.get("keep_last") or 0
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


def estimate(plan: Plan, cpu: bool = False) -> tuple[Need, int] | None:
    """Memory that a plan needs, and its batch; None where dimensions are not known.

    Args:
        plan: What the config says.
        cpu: It runs there, and not on a GPU.
    """
    size, batch, answer = _model_size(plan), _batch(plan), plan.model.get("max_txt_len")
    if size is None or batch is None or answer is None:
        return None
    told = (plan.model.get("precision"), plan.run.get("precision"))
    half = "fp32" not in told and plan.run.get("amp") is not False
    if cpu and "bf16" not in told:
        half = False
    quantize = _quantize(plan)
    if plan.purpose == "training":
        learnt = answer + 1
        tokens = 1 + _prompt_tokens(plan) + size.image_tokens + learnt
        again = plan.run.get("gradient_checkpointing") is True
        need = training_need(size, tokens, learnt, half, quantize, again)
        parts = need.parts | _more_trained(plan, size)
        if plan.from_features:
            parts = {name: needed for name, needed in parts.items() if name not in TOWERS}
        return replace(need, parts=parts), batch
    beams, longest = plan.chat.get("num_beams", 1), plan.chat.get("max_length", 2000)
    kept = plan.chat.get("kept_tokens", 0) if plan.purpose == "chat" else 0
    return chat_need(size, longest, half, quantize, kept), batch * beams


def memory_warning(plan: Plan) -> str | None:
    """Complaint about a GPU that is there, and seems too small; the main process tells it."""
    main = os.environ.get("RANK", "0") == "0"
    found = estimate(plan) if main and plan.device == "cuda" else None
    spread = plan.model.get("device_map") == "auto"  # it takes what there is
    if found is None or spread or not torch.cuda.is_available():
        return None
    return too_small(*found, torch.cuda.get_device_properties(0).total_memory)


def too_small(need: Need, batch: int, memory: int) -> str | None:
    """Complaint about a memory that does not hold a batch."""
    if need.total(batch) <= memory:
        return None
    text = (
        f"a batch of {batch} needs about {gigabytes(need.total(batch))} of GPU memory, "
        f"this GPU has {gigabytes(memory)}"
    )
    largest = need.largest_batch(memory)
    if largest:
        return f"{text}; {largest} should fit"
    return f"{text}; not one sample fits: model.quantize makes the language model smaller"


def _more_trained(plan: Plan, size: ModelSize) -> dict[str, int]:
    """Gradient and moments of a Q-Former that is trained too."""
    return {"Q-Former's AdamW": size.asking * _SAVED} if _trains_q_former(plan) else {}


def _trains_q_former(plan: Plan) -> bool:
    return "q_former" in (plan.model.get("trainable") or ())


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
    return (
        "int8"
        if quantize == "none" and plan.model.get("low_resource") and has_library
        else quantize
    )


def _prompt_tokens(plan: Plan) -> int:
    """Tokens of the longest prompt, estimated."""
    path, template = plan.model.get("prompt_path"), plan.model.get("prompt_template") or "{}"
    if not path or not os.path.isfile(path):
        return 0
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    prompts = [template.replace("{}", line) for line in lines if IMAGE_MARK in line]
    return max((len(prompt) // _CHARACTERS for prompt in prompts), default=0)


def _language_model(plan: Plan) -> LanguageModelSize | None:
    folder = plan.model.get("llama_model")
    return read_language_model_size(folder) if isinstance(folder, str) else None


def _model_size(plan: Plan) -> ModelSize | None:
    language_model, encoder = _language_model(plan), plan.encoder
    pixels, queries = plan.model.get("image_size"), plan.model.get("num_query_token")
    known = encoder and language_model and pixels and queries and plan.projection_input
    if not known or encoder is None or language_model is None:
        return None
    return ModelSize(int(pixels or 0), int(queries or 0), encoder, plan.q_former, language_model)
