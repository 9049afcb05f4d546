"""Packing: the real positions of a padded batch, one sample behind the other in a single row.

Each sample attends to itself alone and its positions begin at 0: nothing changes but that no
padding is computed. Only attention knows of samples; everything else works position by position.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from minigpt4.models.splice import IGNORED, Spliced

PER_SAMPLE = "attention_per_sample"  # under this name transformers knows it
_PROBES = ((3, 7, 5), 1e-4)  # lengths of a trial, and its bound in fp32


@dataclass(frozen=True)
class Samples:
    """Where the samples of a packed row lie.

    Attributes:
        starts: Position of each sample's first, and the end of the last: ``[B + 1]``, int32.
        places: Of each position, its place in a padded batch ``[B * longest]``: ``[T]``.
        count: B.
        longest: Positions of the longest sample.
    """

    starts: torch.Tensor
    places: torch.Tensor
    count: int
    longest: int


@dataclass(frozen=True)
class Packed:
    """A batch in one row of T positions.

    Attributes:
        embeds: ``[1, T, D]``.
        position_ids: ``[1, T]``, from 0 in each sample.
        learnt: Positions whose output predicts a target: ``[n]``.
        targets: Those targets: ``[n]``.
        samples: For the attention.
    """

    embeds: torch.Tensor
    position_ids: torch.Tensor
    learnt: torch.Tensor
    targets: torch.Tensor
    samples: Samples


def pack(spliced: Spliced) -> Packed:
    """Leave out the padding of a batch padded on the right; lengths are known on the host."""
    rows, longest = spliced.targets.shape
    device = spliced.embeds.device
    lengths = torch.tensor(spliced.lengths)
    starts = functional.pad(lengths.cumsum(0), (1, 0))
    of_row = torch.arange(rows).repeat_interleave(lengths)
    position_ids = torch.arange(int(starts[-1])) - starts[of_row]
    places = (of_row * longest + position_ids).to(device)
    # An answer stands at the end of its row; the position before each of its tokens predicts it.
    answers = torch.tensor(spliced.answers)
    from_end = lengths[of_row] - 1 - position_ids
    learnt = torch.nonzero((from_end >= 1) & (from_end <= answers[of_row]))[:, 0].to(device)
    embeds = spliced.embeds.flatten(0, 1)[places]
    targets = spliced.targets.flatten()[places][learnt + 1]
    samples = Samples(starts.int().to(device), places, rows, longest)
    return Packed(embeds[None], position_ids[None].to(device), learnt, targets, samples)


def attention_per_sample(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    samples: Samples,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of a packed row, as transformers calls it.

    Args:
        module: The attention layer.
        query: ``[1, heads, T, d]``; key and value may have fewer heads.
        key: See there.
        value: See there.
        attention_mask: None: the samples say it all.
        samples: Where they lie.
        scaling: Of the products; one over the root of d without.

    Returns:
        ``[1, T, heads, d]``.
    """
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    kernel = _gpu_kernel() if query.is_cuda and half else None
    attend = kernel or _attend_padded
    return attend(query, key, value, samples, scaling)[None], None  # [T, heads, d] each


def _attend_padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    samples: Samples,
    scaling: float | None,
) -> torch.Tensor:
    """Padded for the attention alone: where there is no kernel for samples of several lengths."""

    def pad(states: torch.Tensor) -> torch.Tensor:
        padded = states.new_zeros(samples.count * samples.longest, *states.shape[1:])
        padded = padded.index_copy(0, samples.places, states)
        return padded.view(samples.count, samples.longest, *states.shape[1:]).transpose(1, 2)

    attended = functional.scaled_dot_product_attention(
        pad(query),
        pad(key),
        pad(value),
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)[samples.places]


@cache
def _gpu_kernel() -> Callable[..., torch.Tensor] | None:
    """Attention over samples of several lengths: torch's own, else flash-attn's if installed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _flash_kernel()
    names = inspect.signature(varlen_attn).parameters
    if "scale" not in names:
        return _flash_kernel()
    # The argument that makes it causal has changed its name.
    causal: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    )

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        samples: Samples,
        scaling: float | None,
    ) -> torch.Tensor:
        key, value = (_all_heads(states, query) for states in (key, value))
        starts, longest = samples.starts, samples.longest
        out = varlen_attn(
            query, key, value, starts, starts, longest, longest, scale=scaling, **causal
        )
        assert isinstance(out, torch.Tensor)
        return out

    return attend


def _flash_kernel() -> Callable[..., torch.Tensor] | None:
    if importlib.util.find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        samples: Samples,
        scaling: float | None,
    ) -> torch.Tensor:
        starts, longest = samples.starts, samples.longest
        given = {"softmax_scale": scaling, "causal": True}
        return flash_attn_varlen_func(query, key, value, starts, starts, longest, longest, **given)

    return attend


def _all_heads(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


AttentionInterface.register(PER_SAMPLE, attention_per_sample)


@contextmanager
def _attending_per_sample(model: PreTrainedModel) -> Iterator[None]:
    """For one forward only: generation and evaluation go on with the model's own attention."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = PER_SAMPLE
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_logits(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The language model's output ``[n, V]`` where something is learnt, and nowhere else."""
    with _attending_per_sample(model):
        output = model(
            inputs_embeds=packed.embeds,
            position_ids=packed.position_ids,
            use_cache=False,
            logits_to_keep=packed.learnt,
            samples=packed.samples,
        )
    assert isinstance(output.logits, torch.Tensor)
    return output.logits[0]


@torch.no_grad()
def packing_fault(model: PreTrainedModel, device: torch.device) -> str | None:
    """Why a language model's packed numbers are not its padded ones; None where they are.

    It is tried: three short rows of noise, padded and packed. A model whose attention is not
    transformers' common one, or looks only so far back, is found so.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "it takes no logits_to_keep"
    if not model.is_backend_compatible():
        return "its attention is one of its own"
    lengths, bound = _PROBES
    embedding = model.get_input_embeddings().weight
    drawn = torch.Generator().manual_seed(0)
    noise = torch.randn(len(lengths), max(lengths), embedding.shape[1], generator=drawn)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    embeds = (noise * real[..., None] * 0.02).to(device, embedding.dtype)
    targets = torch.where(real, 0, IGNORED).to(device)
    mask = real.long().to(device)
    answers = [length - 1 for length in lengths]
    packed = pack(Spliced(embeds, mask, targets, list(lengths), answers))
    try:
        ours = packed_logits(model, packed).float()
        theirs = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"it does not run packed ({type(error).__name__})"
    theirs = theirs.float().flatten(0, 1)[packed.samples.places][packed.learnt]
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    if embedding.dtype != torch.float32:
        bound = 0.05  # the order of sums alone moves half-precision numbers
    return None if difference <= bound else f"its outputs change by {difference:.2g}"
