"""Machine: whether this one can do what a config asks for: devices, processes, disk, memory.

The memory that a training or a chat needs is estimated from the model on the meta device: its
parameters are counted one by one. Activations are those that a frozen language model keeps for
the gradient of its inputs: about 32 bytes for each number of a token's width and layer in half
precision. Compared with reported figures in ``tests/preflight/test_memory.py``.
"""

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minigpt4.config.checks import nearest_existing
from minigpt4.errors import ConfigError, Fault, one_line
from minigpt4.models import Quantize
from minigpt4.models.build import choose_dtype
from minigpt4.preflight.draft import Draft, MetaModel
from minigpt4.registry import UnknownOptionError
from minigpt4.weights.names import trained_part

GIB = 2**30
CARDS = (24 * GIB, 40 * GIB, 80 * GIB)  # sizes of the usual GPUs
TOWERS = ("visual encoder", "Q-Former")  # parts that a training from cached features does without
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
_CUDA = {"CUDA and buffers": 10**9}  # CUDA's own, its kernels' buffers, what lies between tensors
_SAVED = 12  # bytes for each trained number in a checkpoint: itself and two moments, in fp32
_LOGS = 10_000_000  # of a run: config, figures, the overhead of a checkpoint's form
_CHARACTERS = 3  # of a prompt in one token, at least


@dataclass(frozen=True)
class Need:
    """Bytes of each part, whatever the batch, and of each sample, on a GPU or in main memory."""

    parts: dict[str, int]
    per_sample: int
    sample: str  # what a sample's bytes are
    gpu: bool = True

    def total(self, batch: int) -> int:
        return sum(self.parts.values()) + batch * self.per_sample

    def largest_batch(self, memory: int) -> int:
        """Return how many samples should fit into so many bytes; 0 where not one does."""
        return max(0, memory - self.total(0)) // max(1, self.per_sample)


def device_faults(draft: Draft) -> Iterator[Fault]:
    """Yield devices that do not exist, more processes than GPUs, arithmetic a CPU does not have."""
    if draft.purpose != "chat":  # a chat's device is on its command line
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
        training = draft.purpose == "training"
        return _training_estimate(draft) if training else _answering_estimate(draft)
    except UnknownOptionError:
        return None


def _training_estimate(draft: Draft) -> tuple[Need, int] | None:
    options, targets = draft.model, draft.model.max_txt_len + 1
    tokens = 1 + _prompt_tokens(draft) + options.image_tokens + targets
    again, gpu = draft.run.gradient_checkpointing, draft.device != "cpu"
    sizes = tokens, targets, _quantize(draft)
    need = training_need(draft.meta_model, *sizes, options.trainable, again, gpu)
    if draft.checked.from_features:
        parts = {name: size for name, size in need.parts.items() if name not in TOWERS}
        need = replace(need, parts=parts)
    own = [getattr(each.options, "batch_size", None) for each in draft.checked.datasets.values()]
    batches = [batch for each in own if (batch := each or draft.run.batch_size_train)]
    return (need, max(batches)) if batches else None


def _answering_estimate(draft: Draft) -> tuple[Need, int]:
    chat, in_chat = draft.checked.chat, draft.purpose == "chat"
    kept = chat.kept_tokens if in_chat else 0
    batch = 1 if in_chat else draft.run.batch_size_eval
    quantize, gpu = _quantize(draft), draft.device != "cpu"
    return chat_need(draft.meta_model, chat.max_length, quantize, kept, gpu), batch * chat.num_beams


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


def _quantize(draft: Draft) -> Quantize:
    if draft.model.quantize != "none" or not draft.model.low_resource:
        return draft.model.quantize
    return "none" if importlib.util.find_spec("bitsandbytes") is None else "int8"


def _prompt_tokens(draft: Draft) -> int:
    """Tokens of the longest prompt, estimated."""
    return max(map(len, draft.model.load_prompts()), default=0) // _CHARACTERS


def part_bytes(model: MetaModel, quantize: Quantize = "none") -> dict[str, int]:
    """Return the bytes of each part's parameters; of the language model, quantized ones."""
    quantized = _quantized_weights(model.llama_model) if quantize != "none" else set()
    sizes = dict.fromkeys(_PARTS.values(), 0)
    for name, parameter in model.named_parameters():
        each = _QUANTIZED[quantize] if name in quantized else parameter.element_size()
        sizes[_PARTS[name.partition(".")[0]]] += int(parameter.numel() * each)
    return {part: size for part, size in sizes.items() if size}


def _quantized_weights(language_model: PreTrainedModel) -> set[str]:
    """Return the names of the weights that bitsandbytes quantizes: linear layers, not the head."""
    head = language_model.get_output_embeddings()
    return {
        f"llama_model.{name}.weight"
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name
    }


def trained_numbers(model: MetaModel, trainable: Sequence[str]) -> dict[str, int]:
    """Return how many numbers of each part are trained; the Q-Former brings its queries."""
    wanted = {*trainable, "query_tokens"} if "q_former" in trainable else {*trainable}
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if trained_part(name) in wanted:
            counts[_PARTS[name.partition(".")[0]]] += parameter.numel()
    return dict(counts)


def training_need(
    model: MetaModel,
    tokens: int,
    targets: int,
    quantize: Quantize = "none",
    trainable: Sequence[str] = ("llama_proj",),
    gradient_checkpointing: bool = False,
    gpu: bool = True,
) -> Need:
    """Return what a training needs.

    A sample has ``tokens``, image and prompt included, and so many of them are ``targets``. With
    ``gradient_checkpointing`` only the inputs of the language model's layers are kept.
    """
    parts = part_bytes(model, quantize)
    for part, count in trained_numbers(model, trainable).items():
        if part == "projection":
            parts["projection + AdamW"] = parts.pop(part) + count * _OPTIMIZER
        else:
            parts[f"{part}'s AdamW"] = count * _OPTIMIZER
    words = model.llama_model.get_input_embeddings().weight
    layers: float = model.llama_model.config.get_text_config().num_hidden_layers
    if gradient_checkpointing:
        # Every layer's input, and the rest of the one that is computed again.
        layers = 1 + layers * 2 / _KEPT
    kept = int(tokens * layers * words.shape[1] * _KEPT) * words.element_size() // 2
    logits = words.shape[0] * (tokens * _LOGIT + targets * _TARGET_LOGIT)
    sample = f"activations of {tokens} tokens"
    return Need(parts | (_CUDA if gpu else {}), kept + logits, sample, gpu)


def chat_need(
    model: MetaModel, tokens: int, quantize: Quantize = "none", kept: int = 0, gpu: bool = True
) -> Need:
    """Return what generating needs; a sample is one beam of ``tokens`` tokens, prompt included.

    The keys and values of ``kept`` tokens stay for the next turns.
    """
    parts = part_bytes(model, quantize)
    words = model.llama_model.get_input_embeddings().weight
    each = _keys_and_values(model.llama_model.config.get_text_config()) * words.element_size()
    if kept:
        parts[f"keys and values of {kept} tokens kept for next turns"] = kept * each
    sample = f"keys and values of {tokens} tokens"
    return Need(parts | (_CUDA if gpu else {}), tokens * each, sample, gpu)


def _keys_and_values(config: PreTrainedConfig) -> int:
    """Return how many numbers the layers keep for each token."""
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(config.num_hidden_layers * 2 * groups * width)


def memory_table(need: Need, batch: int) -> str:
    """Return the estimate of a training as a table."""
    sample = f"{need.sample}, × {batch}"
    rows = [*need.parts.items(), (sample, batch * need.per_sample), ("together", need.total(batch))]
    width = max(len(name) for name, _ in rows)
    place = "GPU" if need.gpu else "Main"
    lines = [f"{place} memory of one process, estimated with every sample at its longest:"]
    lines += [f"  {name:<{width}} {gigabytes(needed):>10}" for name, needed in rows]
    if need.gpu:
        fits = [f"{need.largest_batch(card):,} in {card / GIB:.0f} GiB" for card in CARDS]
        lines.append(f"  largest batch that should fit: {', '.join(fits)}")
    return "\n".join(lines)


def memory_line(need: Need, batch: int) -> str:
    """Return the estimate of a chat as one line, the largest parts first."""
    parts = need.parts | {need.sample: batch * need.per_sample}
    sizes = sorted(parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes)
    place = "GPU" if need.gpu else "main"
    return f"{place} memory needed, estimated: {gigabytes(need.total(batch))} ({listed})"


def too_small(need: Need, batch: int, memory: int) -> str | None:
    """Return a complaint about a memory that does not hold a batch."""
    return _shortage(need, batch, memory) if need.total(batch) > memory else None


def _shortage(need: Need, batch: int, memory: int) -> str:
    text = f"a batch of {batch} needs about {gigabytes(need.total(batch))} "
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
