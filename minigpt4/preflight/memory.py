"""Memory: what a training or a chat needs on a GPU, estimated from dimensions alone.

Weights are counted to the parameter. Activations are those that a frozen LLaMA keeps for the
gradient of its inputs: about 32 bytes for each number of a token's width and layer in half
precision. Held against reported figures in ``tests/preflight/test_memory.py``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.config.checks import check_dimension
from minigpt4.models.q_former import QFormerSize
from minigpt4.models.speed.quantization import Quantize
from minigpt4.models.visual_encoder import VisualEncoderSize

GIB = 2**30
CARDS = (24 * GIB, 40 * GIB, 80 * GIB)  # sizes of the usual GPUs
_KEPT = 32  # bytes for each token, layer and number of the width
_LOGIT, _LEARNT_LOGIT = 4, 8  # bytes for each word of the vocabulary and token; more for a target
_QUANTIZED = {
    "int8": 1.0,
    "nf4": 0.53,
}  # bytes for each parameter of the layers, constants included
_TRAINED = 16  # bytes for each trained number: itself, gradient, two moments of AdamW, in fp32
CUDA, _LIBRARIES = (
    "CUDA and buffers",
    10**9,
)  # CUDA's own, its kernels' buffers and what lies between tensors


TOWERS = ("visual encoder", "Q-Former")  # parts that a training from cached features does without


@dataclass(frozen=True)
class LanguageModelSize:
    """Dimensions of a LLaMA; ``key_value`` is the width of its keys and values together."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    key_value: int
    tied: bool = False

    @property
    def embeddings(self) -> int:
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def inner(self) -> int:
        """Parameters of the layers and the last norm."""
        attention = 2 * self.width**2 + self.width * self.key_value
        layer = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.layers * layer + self.width


@dataclass(frozen=True)
class ModelSize:
    """Dimensions of the whole; ``q_former`` is None for the variant without it."""

    image_size: int
    queries: int
    visual_encoder: VisualEncoderSize
    q_former: QFormerSize | None
    language_model: LanguageModelSize

    @property
    def image_tokens(self) -> int:
        return self.queries if self.q_former else self._patches // 4

    @property
    def projection(self) -> int:
        """Parameters of ``llama_proj``."""
        width = projection_input(self.visual_encoder, self.q_former)
        return (width + 1) * self.language_model.width

    @property
    def _patches(self) -> int:
        return (self.image_size // self.visual_encoder.patch_size) ** 2

    @property
    def seeing(self) -> int:
        """Parameters of the visual encoder."""
        size = self.visual_encoder
        feed_forward = int(size.embed_dim * size.mlp_ratio)
        block = 4 * size.embed_dim**2 + 2 * size.embed_dim * feed_forward + 9 * size.embed_dim
        patches = 3 * size.patch_size**2 + self._patches
        return size.depth * block + patches * size.embed_dim

    @property
    def asking(self) -> int:
        """Parameters of the Q-Former and its queries."""
        size = self.q_former
        if size is None:
            return 0
        width, every = size.hidden_size, max(1, size.cross_attention_frequency)
        block = 4 * width**2 + 2 * width * size.intermediate_size
        crossing = 2 * width**2 + 2 * width * self.visual_encoder.embed_dim
        crossings = -(-size.num_hidden_layers // every)
        return size.num_hidden_layers * block + crossings * crossing + self.queries * width


@dataclass(frozen=True)
class Need:
    """Bytes: of each part, whatever the batch, and of each sample."""

    parts: dict[str, int]
    per_sample: int
    sample: str  # what a sample's are

    def total(self, batch: int) -> int:
        return sum(self.parts.values()) + batch * self.per_sample

    def largest_batch(self, memory: int) -> int:
        """Samples that should fit into so many bytes; 0 where not one does."""
        return max(0, memory - self.total(0)) // max(1, self.per_sample)


def projection_input(encoder: VisualEncoderSize, q_former: QFormerSize | None) -> int:
    """Width of what the projection reads: the Q-Former's, or four patches side by side."""
    return q_former.hidden_size if q_former else 4 * encoder.embed_dim


def read_language_model_size(folder: str | Path) -> LanguageModelSize | None:
    """Dimensions from a folder's ``config.json``; None where it does not say them as LLaMA does."""
    settings = read_settings(folder)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    sizes = [settings.get(name) for name in (*names, "num_attention_heads")]
    if not all(type(size) is int and check_dimension(size) is None for size in sizes):
        return None
    vocabulary, width, feed_forward, layers, heads = (int(size or 0) for size in sizes)
    groups = settings.get("num_key_value_heads")
    groups = groups if isinstance(groups, int) and groups > 0 else heads
    key_value = 2 * groups * max(1, width // heads)
    tied = settings.get("tie_word_embeddings") is True
    return LanguageModelSize(vocabulary, width, feed_forward, layers, key_value, tied)


def read_settings(folder: str | Path) -> Mapping[str, Any]:
    """A language model's ``config.json``; nothing where there is none that can be read."""
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def weights_need(size: ModelSize, half: bool = True, quantize: Quantize = "none") -> dict[str, int]:
    """Bytes of the frozen parts.

    Args:
        size: Dimensions.
        half: fp16 or bf16; the Q-Former stays in fp32.
        quantize: Of the language model's layers.
    """
    each = 2 if half else 4
    language_model = size.language_model
    parts = dict(zip(TOWERS, (size.seeing * each, size.asking * 4), strict=True))
    layers = language_model.inner * _QUANTIZED.get(quantize, each)
    parts["language model"] = int(layers) + language_model.embeddings * each
    return {name: needed for name, needed in parts.items() if needed}


def training_need(
    size: ModelSize,
    tokens: int,
    learnt: int,
    half: bool = True,
    quantize: Quantize = "none",
    gradient_checkpointing: bool = False,
) -> Need:
    """What a training needs.

    Args:
        size: Dimensions.
        tokens: Of a sample, image and prompt included.
        learnt: Of those, the ones with a target.
        half: fp16 or bf16.
        quantize: Of the language model's layers.
        gradient_checkpointing: Of the language model's layers only the inputs are kept.
    """
    model = size.language_model
    parts = weights_need(size, half, quantize)
    parts["projection + AdamW"] = size.projection * _TRAINED
    parts[CUDA] = _LIBRARIES
    # Every layer's input, and the rest of the one that is computed again; or all of every layer.
    layers = (1 + model.layers * 2 / _KEPT) if gradient_checkpointing else model.layers
    kept = int(tokens * layers * model.width * _KEPT) * (1 if half else 2)
    logits = model.vocabulary * (tokens * _LOGIT + learnt * _LEARNT_LOGIT)
    return Need(parts, kept + logits, f"activations of {tokens} tokens")


def chat_need(
    size: ModelSize, tokens: int, half: bool = True, quantize: Quantize = "none", kept: int = 0
) -> Need:
    """What generating needs; a sample is one beam of ``tokens`` tokens, prompt included.

    ``kept`` tokens' keys and values stay for next turns.
    """
    model = size.language_model
    parts = weights_need(size, half, quantize)
    parts["projection"] = size.projection * 4
    parts[CUDA] = _LIBRARIES
    each = model.layers * model.key_value * (2 if half else 4)
    if kept:
        parts[f"keys and values of {kept} tokens kept for next turns"] = kept * each
    return Need(parts, tokens * each, f"keys and values of {tokens} tokens")


def memory_table(need: Need, batch: int, cards: tuple[int, ...] = CARDS) -> str:
    """The estimate as people read it."""
    sample = f"{need.sample}, × {batch}"
    rows = [*need.parts.items(), (sample, batch * need.per_sample), ("together", need.total(batch))]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}} {gigabytes(needed):>10}" for name, needed in rows]
    fits = [f"{need.largest_batch(card):,} in {card / GIB:.0f} GiB" for card in cards]
    return "\n".join(
        [
            "GPU memory of one process, estimated with every sample at its longest:",
            *lines,
            f"  largest batch that should fit: {', '.join(fits)}",
        ]
    )


def memory_line(need: Need, batch: int, gpu: bool) -> str:
    """The estimate of a chat as one line, the largest parts first."""
    parts = need.parts | {need.sample: batch * need.per_sample}
    if not gpu:
        parts.pop(CUDA)
    sizes = sorted(parts.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes)
    where = "GPU" if gpu else "main"
    return f"{where} memory needed, estimated: {gigabytes(sum(parts.values()))} ({told})"


def gigabytes(count: int) -> str:
    """Bytes in a readable unit; 1 GB is a thousand million."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
