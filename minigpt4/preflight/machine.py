"""Machine: whether this one can do what a config asks for: devices, processes, disk, memory.

The memory that a training or a chat needs is estimated from the model on the meta device: its
parameters are counted one by one. Activations are those that a frozen language model keeps for
the gradient of its inputs: about 32 bytes for each number of a token's width and layer in half
precision. Compared with reported figures in ``tests/preflight/test_memory.py``.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minigpt4.config.checks import nearest_existing
from minigpt4.errors import ConfigError, Fault
from minigpt4.models.build import choose_dtype
from minigpt4.preflight.draft import Draft
from minigpt4.registry import UnknownOptionError

GIB = 2**30
CARDS = (24 * GIB, 40 * GIB, 80 * GIB)  # sizes of the usual GPUs
_TOWERS = ("visual encoder", "Q-Former")  # parts that a training from cached features does without
_PARTS = {
    "visual_encoder": "visual encoder",
    "ln_vision": "visual encoder",
    "q_former": "Q-Former",
    "query_tokens": "Q-Former",
    "llama_model": "language model",
    "llama_proj": "projection",
}
_QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # bytes of a weight; nf4 with a scale for each 64
_OPTIMIZER = 12  # bytes for each trained number: its gradient and two moments of AdamW, in fp32
_KEPT = 32  # bytes for each token, layer and number of the width
_LOGIT, _TARGET_LOGIT = 4, 8  # bytes for each word of the vocabulary and token; more for a target
_CUDA = 10**9  # bytes of CUDA itself, its kernels' buffers, what lies between tensors
_SAVED = 12  # bytes for each trained number in a checkpoint: itself and two moments, in fp32
_LOGS = 10_000_000  # of a run: config, figures, the overhead of a checkpoint's form
_CHARACTERS = 3  # of a prompt in one token, at least


@dataclass(frozen=True)
class Need:
    """Bytes that a batch needs on a GPU, or in main memory, with every sample at its longest.

    Attributes:
        parts: Bytes of each part, whatever the batch.
        per_sample: Bytes of each sample.
        sample: Words for the bytes of a sample.
        batch: Samples of a batch.
        gpu: Whether it is the memory of a GPU.
    """

    parts: dict[str, int]
    per_sample: int
    sample: str
    batch: int
    gpu: bool

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.batch * self.per_sample

    def largest_batch(self, memory: int) -> int:
        """Return how many samples should fit into so many bytes; 0 where not one does."""
        return max(0, memory - sum(self.parts.values())) // max(1, self.per_sample)


def device_faults(draft: Draft) -> Iterator[Fault]:
    """Yield devices that do not exist, more processes than GPUs, arithmetic a CPU does not have."""
    if draft.checked.purpose != "chat":  # a chat's device is on its command line
        asked = draft.checked.config.run.get("device")
        if asked in ("cuda", "mps"):
            yield from _absent_faults(asked)
        if draft.device == "cuda":
            yield from _process_faults()
    if draft.device == "cpu":
        key, precision = draft.precision
        try:
            choose_dtype(precision, torch.device("cpu"), key)
        except ConfigError as error:
            yield Fault(key, str(error).removeprefix(f"{key}: "))


def _absent_faults(asked: str) -> Iterator[Fault]:
    if asked == "cuda" and not torch.cuda.is_available():
        text = "cuda, but this machine has no usable GPU; add --options run.device=cpu (or auto)"
        yield Fault("run.device", text)
    if asked == "mps" and not torch.backends.mps.is_available():
        yield Fault("run.device", "mps, but this machine has none; use auto or cpu")


def _process_faults() -> Iterator[Fault]:
    processes, gpus = os.environ.get("LOCAL_WORLD_SIZE", "1"), torch.cuda.device_count()
    if 0 < gpus < (int(processes) if processes.isdecimal() else 1):
        text = f"torchrun started {processes} processes on {gpus} GPUs; --nproc-per-node {gpus}"
        yield Fault("run.device", text)


def disk_faults(draft: Draft) -> Iterator[Fault]:
    """Yield an output folder without room for a checkpoint of each epoch."""
    folder, epochs = draft.run.output_dir, draft.run.max_epoch
    each = _SAVED * sum(p.numel() for p in draft.meta_model.parameters() if p.requires_grad)
    # States to resume from are kept besides; a file is written next to the one that it replaces.
    needed = each * (epochs + draft.run.keep_last + 1) + _LOGS
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        text = (
            f"{folder} has {gigabytes(free)} free, and {epochs} checkpoints of {gigabytes(each)} "
            f"need about {gigabytes(needed)} with all that a run keeps beside them; free space or "
            "choose another folder"
        )
        yield Fault("run.output_dir", text)


def estimate(draft: Draft) -> Need | None:
    """Return the memory that is needed where it will run; None: dimensions are unknown."""
    need_of = _training_need if draft.checked.purpose == "training" else _answering_need
    try:
        return need_of(draft)
    except UnknownOptionError:
        return None


def memory_warning(draft: Draft) -> str | None:
    """Return what is wrong, in the main process, with a memory that seems too small."""
    memory = total_memory(draft.device)
    spread = getattr(draft.model, "device_map", "none") == "auto"  # it takes what there is
    known = memory and not spread and os.environ.get("RANK", "0") == "0"
    need = estimate(draft) if known else None
    return shortage(need, memory) if need and need.total > memory else None


def total_memory(device: str | None) -> int:
    """Return the bytes of the first GPU or of the main memory; 0 where they are not known."""
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else 0


def _training_need(draft: Draft) -> Need:
    options, run, parts = draft.model, draft.run, part_bytes(draft)
    own = [getattr(each.options, "batch_size", None) for each in draft.checked.datasets.values()]
    targets = options.max_txt_len + 1
    prompt = max(map(len, options.load_prompts()), default=0) // _CHARACTERS
    tokens = 1 + prompt + options.image_tokens + targets
    language_model = draft.meta_model.llama_model
    words = language_model.get_input_embeddings().weight
    layers: float = language_model.config.get_text_config().num_hidden_layers
    if run.gradient_checkpointing:
        # Every layer's input, and the rest of the one that is computed again.
        layers = 1 + layers * 2 / _KEPT
    kept = int(tokens * layers * words.shape[1] * _KEPT) * words.element_size() // 2
    logits = words.shape[0] * (tokens * _LOGIT + targets * _TARGET_LOGIT)
    batch = max(each or run.batch_size_train or 1 for each in own)
    sample = f"activations of {tokens} tokens"
    return Need(parts, kept + logits, sample, batch, draft.device != "cpu")


def _answering_need(draft: Draft) -> Need:
    """Return what generating needs; a sample is one beam, prompt included."""
    chat, parts, in_chat = draft.checked.chat, part_bytes(draft), draft.checked.purpose == "chat"
    language_model = draft.meta_model.llama_model
    words = language_model.get_input_embeddings().weight
    each = _keys_and_values(language_model.config.get_text_config()) * words.element_size()
    if in_chat and chat.kept_tokens:
        name = f"keys and values of {chat.kept_tokens} tokens kept for next turns"
        parts[name] = chat.kept_tokens * each
    batch = chat.num_beams * (1 if in_chat else draft.run.batch_size_eval)
    sample = f"keys and values of {chat.max_length} tokens"
    return Need(parts, chat.max_length * each, sample, batch, draft.device != "cpu")


def part_bytes(draft: Draft) -> dict[str, int]:
    """Return the bytes of each part's parameters and their optimizer, and those of CUDA itself."""
    options, model, training = draft.model, draft.meta_model, draft.checked.purpose == "training"
    quantize = options.quantize
    if quantize == "none" and options.low_resource and find_spec("bitsandbytes"):
        quantize = "int8"
    quantized = _quantized_weights(model.llama_model) if quantize != "none" else set()
    unread = _TOWERS if draft.checked.from_features else ()
    sizes = Counter(dict.fromkeys(_PARTS.values(), 0))
    for name, parameter in model.named_parameters():
        part, count = _PARTS[name.partition(".")[0]], parameter.numel()
        if part not in unread:
            each = _QUANTIZED[quantize] if name in quantized else parameter.element_size()
            sizes[part] += int(count * each)
        if training and parameter.requires_grad:
            sizes[f"{part}'s AdamW"] += count * _OPTIMIZER
    sizes["CUDA and buffers"] = _CUDA if draft.device != "cpu" else 0
    return {part: size for part, size in sizes.items() if size}


def _quantized_weights(language_model: PreTrainedModel) -> set[str]:
    """Return the names of the weights that bitsandbytes quantizes: linear layers, not the head."""
    head = language_model.get_output_embeddings()
    return {
        f"llama_model.{name}.weight"
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }


def _keys_and_values(config: PreTrainedConfig) -> int:
    """Return how many numbers the layers keep for each token."""
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers * 2 * groups * width)


def memory_table(need: Need) -> str:
    """Return the estimate of a training as a table."""
    sample = f"{need.sample}, × {need.batch}"
    rows = [*need.parts.items(), (sample, need.batch * need.per_sample), ("together", need.total)]
    width = max(len(name) for name, _ in rows)
    place = "GPU" if need.gpu else "Main"
    lines = [f"{place} memory of one process, estimated with every sample at its longest:"]
    lines += [f"  {name:<{width}} {gigabytes(needed):>10}" for name, needed in rows]
    if need.gpu:
        fits = [f"{need.largest_batch(card):,} in {card / GIB:.0f} GiB" for card in CARDS]
        lines.append(f"  largest batch that should fit: {', '.join(fits)}")
    return "\n".join(lines)


def memory_line(need: Need) -> str:
    """Return the estimate of a chat as one line, the largest parts first."""
    parts = need.parts | {need.sample: need.batch * need.per_sample}
    sizes = sorted(parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes)
    place = "GPU" if need.gpu else "main"
    return f"{place} memory needed, estimated: {gigabytes(need.total)} ({listed})"


def shortage(need: Need, memory: int) -> str:
    """Return what to say of a memory that does not hold the batch."""
    text = f"a batch of {need.batch} needs about {gigabytes(need.total)} "
    if need.gpu:
        text += f"of GPU memory, this GPU has {gigabytes(memory)}"
    else:
        text += f"of main memory, this machine has {gigabytes(memory)}"
    if largest := need.largest_batch(memory):
        return f"{text}; {largest} should fit"
    return f"{text}; not one sample fits: model.quantize makes the language model smaller"


def gigabytes(count: int) -> str:
    """Return bytes in a readable unit; 1 GB is a thousand million."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
