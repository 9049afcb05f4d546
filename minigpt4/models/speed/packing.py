"""Packing: the real positions of a padded batch, one sample after the other in a single row.

No padding is computed, and only once what all samples begin with (the lead, which has no image
before it). Each sample attends to itself alone, and its positions begin at 0: no result changes.
Only attention knows of samples; everything else works position by position.
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from minigpt4.models.llm_input import IGNORED, Joined, on_device, pad, target_logits

PER_SAMPLE = "attention_per_sample"  # under this name transformers knows it


@dataclass(frozen=True)
class Samples:
    """Where the samples of a packed row are, and what they attend to.

    Attributes:
        starts: First position of each stretch of queries, and the end of the last: ``[n + 1]``,
            int32. A stretch is a sample's own positions; the shared lead is the first one.
        key_starts: The same for the keys, where each sample has the lead before it.
        keys: Positions of the row that are these keys; None for the row as it is.
        padded: Positions of the row that make a padded batch of whole samples: ``[B, longest]``.
        places: Place of each position of the row in that batch: ``[T]``.
    """

    starts: Tensor
    key_starts: Tensor
    keys: Tensor | None
    padded: Tensor
    places: Tensor


@dataclass(frozen=True)
class Packed:
    """A batch in one row of T positions.

    Attributes:
        embeds: ``[1, T, D]``.
        position_ids: ``[1, T]``, from 0 in each sample.
        predicting: Positions whose output predicts a target: ``[n]``.
        targets: Those targets: ``[n]``.
        samples: For the attention.
    """

    embeds: Tensor
    position_ids: Tensor
    predicting: Tensor
    targets: Tensor
    samples: Samples


def pack(joined: Joined) -> Packed:
    """Compute on the host what attention and loss need, and send it to the device at once."""
    lead, longest = joined.lead, max(joined.lengths)
    lengths, shared = torch.tensor(joined.lengths), torch.arange(lead)
    own = lengths - lead
    ends = lead + own.cumsum(0)
    # Padded with a sample's last position: neither another sample nor a zero gets there.
    within = torch.arange(longest).minimum(lengths[:, None] - 1)
    padded = torch.where(within < lead, within, (ends - lengths)[:, None] + within)
    real = torch.arange(longest) < lengths[:, None]
    of_row = torch.arange(len(own)).repeat_interleave(own)
    position = torch.arange(lead, lead + len(of_row)) - (ends - lengths)[of_row]  # in its sample
    # The position before a target predicts it. It is never shared: a lead ends before an image.
    targets = torch.tensor([target for row in joined.targets for target in row[lead:]])
    is_target = targets != IGNORED
    first = torch.tensor([0, lead] if lead else [0])  # the lead is a stretch of its own
    parts = [
        torch.cat([first, ends]),
        torch.cat([first, lead + lengths.cumsum(0)]),
        torch.cat([shared, padded[real]]) if lead else shared,
        padded.flatten(),
        torch.cat([shared, of_row * longest + position]),
        torch.cat([shared, position]),
        lead + torch.nonzero(is_target)[:, 0] - 1,
        targets[is_target],
    ]
    sent = on_device(torch.cat(parts), joined.embeds.device).split([len(part) for part in parts])
    starts, key_starts, keys, padded, places, position_ids, predicting, targets = sent
    starts = starts.int()
    # One tensor for both shows torch that queries and keys are alike, so that more kernels fit.
    key_starts = key_starts.int() if lead else starts
    padded = padded.view(-1, longest)
    samples = Samples(starts, key_starts, keys if lead else None, padded, places)
    return Packed(joined.embeds[None], position_ids[None], predicting, targets, samples)


def attention_per_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    samples: Samples,
    scaling: float | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each sample, ``[1, T, heads, d]``, as transformers calls it.

    The query is ``[1, heads, T, d]``; key and value may have fewer heads.
    """
    # Squeezed, not indexed: the backward pass of an index fills a tensor of zeros first.
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    half = query.dtype in (torch.float16, torch.bfloat16)
    attend = (_gpu_kernel() if query.is_cuda and half else None) or _attend_padded
    return attend(query, key, value, samples, scaling)[None], None  # [T, heads, d] each


def _attend_padded(
    query: Tensor, key: Tensor, value: Tensor, samples: Samples, scaling: float | None
) -> Tensor:
    """Attend in a padded batch, where there is no kernel for samples of several lengths."""
    grouped = query.shape[1] != key.shape[1]
    # An embedding: of all ways to gather rows, torch's fastest backward pass.
    padded = [
        functional.embedding(samples.padded, states.flatten(1)).unflatten(2, states.shape[1:])
        for states in (query, key, value)
    ]
    q, k, v = (states.transpose(1, 2) for states in padded)
    attended = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    rows = functional.embedding(samples.places, attended.transpose(1, 2).flatten(0, 1).flatten(1))
    return rows.unflatten(1, query.shape[1:])


@cache
def _gpu_kernel() -> Callable[..., Tensor] | None:
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
        query: Tensor, key: Tensor, value: Tensor, samples: Samples, scaling: float | None
    ) -> Tensor:
        key, value = (_all_heads(_of_samples(s, samples), query) for s in (key, value))
        starts, longest = (samples.starts, samples.key_starts), (samples.padded.shape[1],) * 2
        out = varlen_attn(query, key, value, *starts, *longest, scale=scaling, **causal)
        assert isinstance(out, Tensor)
        return out

    return attend


def _flash_kernel() -> Callable[..., Tensor] | None:
    if importlib.util.find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    def attend(
        query: Tensor, key: Tensor, value: Tensor, samples: Samples, scaling: float | None
    ) -> Tensor:
        key, value = (_of_samples(states, samples) for states in (key, value))
        starts, longest = (samples.starts, samples.key_starts), (samples.padded.shape[1],) * 2
        given = {"softmax_scale": scaling, "causal": True}
        return flash_attn_varlen_func(query, key, value, *starts, *longest, **given)

    return attend


def _of_samples(states: Tensor, samples: Samples) -> Tensor:
    """Keys or values of whole samples: the kernels align the last query with the last key."""
    return states if samples.keys is None else states.index_select(0, samples.keys)


def _all_heads(states: Tensor, query: Tensor) -> Tensor:
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


AttentionInterface.register(PER_SAMPLE, attention_per_sample)


@contextmanager
def attending(model: PreTrainedModel, implementation: str = PER_SAMPLE) -> Iterator[None]:
    """Switch the model's attention for one forward; generation and evaluation use its own."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


def packed_logits(model: PreTrainedModel, packed: Packed) -> Tensor:
    """Return the language model's output ``[n, V]`` at the positions that predict a target."""
    with attending(model):
        logits: Tensor = model(
            inputs_embeds=packed.embeds,
            position_ids=packed.position_ids,
            use_cache=False,
            logits_to_keep=packed.predicting,
            samples=packed.samples,
        ).logits
    return logits.squeeze(0)


@torch.no_grad()
def packing_fault(model: PreTrainedModel, device: torch.device, lead: int = 0) -> str | None:
    """Return why packed and padded results differ for three rows of noise; None if they do not."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "it takes no logits_to_keep"
    if not model.is_backend_compatible():
        return "its attention is one of its own"
    words, lengths = model.get_input_embeddings().weight, [4, 7, 5]
    noise = torch.randn(16, words.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    first, *others = noise.to(device, words.dtype).split(lengths)
    own = torch.cat([first, *(row[lead:] for row in others)])
    whole = torch.cat([first, *(torch.cat([first[:lead], row[lead:]]) for row in others)])
    targets = [[IGNORED] * (lead + 1) + [0] * (length - lead - 1) for length in lengths]
    padded = pad(Joined(whole, lengths, targets))
    try:
        ours = packed_logits(model, pack(Joined(own, lengths, targets, lead))).float()
        mask = {"attention_mask": padded.attention_mask}
        theirs = model(inputs_embeds=padded.embeds, use_cache=False, **mask).logits
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"it does not run packed ({type(error).__name__})"
    theirs = target_logits(theirs, padded.targets)[0].float()
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    # The order of sums alone moves half-precision numbers.
    if difference > (1e-4 if padded.embeds.dtype == torch.float32 else 0.05):
        return f"its outputs change by {difference:.2g}"
    # A window may be wider than the rows that were tried.
    states = DynamicCache(config=model.config.get_text_config(decoder=True))
    plain = all(type(layer) is DynamicLayer for layer in states.layers)
    return None if plain else "some of its layers look only so far back"
