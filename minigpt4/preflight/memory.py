"""Memory that a training or a chat needs, estimated from the model on the meta device.

Parameters are counted one by one. Activations are those that a frozen language model keeps for
the gradient of its inputs: about 32 bytes for each number of a token's width and layer in half
precision. Compared with reported figures in ``tests/preflight/test_memory.py``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minigpt4.models.language_model import Quantize
from minigpt4.preflight.draft import MetaModel
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

    Args:
        model: Model on the meta device.
        tokens: Tokens of a sample, image and prompt included.
        targets: Number of these tokens that have a target.
        quantize: Quantization of the language model.
        trainable: Parts that are trained.
        gradient_checkpointing: Whether only the inputs of the language model's layers are kept.
        gpu: Whether it runs on a GPU.
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
    if need.total(batch) <= memory:
        return None
    place, owner = ("GPU", "GPU") if need.gpu else ("main", "machine")
    text = f"a batch of {batch} needs about {gigabytes(need.total(batch))} of {place} memory"
    largest = need.largest_batch(memory)
    fits = "not one sample fits: model.quantize makes the language model smaller"
    fits = f"{largest} should fit" if largest else fits
    return f"{text}, this {owner} has {gigabytes(memory)}; {fits}"


def gigabytes(count: int) -> str:
    """Return bytes in a readable unit; 1 GB is a thousand million."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
