"""Packing: the real positions of a padded batch, one sample behind the other in a single row.

Each sample attends to itself alone and its positions begin at 0: nothing changes but that no
padding is computed, and once only what all samples begin with (the lead: no image stands before it,
so it comes to the same in each). Only attention knows of samples; everything else works position by
position.
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
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from minigpt4.models.llm_input import IGNORED, Joined, Spliced, on_device, pad

PER_SAMPLE = "attention_per_sample"  # under this name transformers knows it


@dataclass(frozen=True)
class Samples:
    """Where the samples of a packed row lie, and what they attend to.

    Attributes:
        starts: First position of each stretch of queries, and the end of the last: ``[n + 1]``,
            int32. A stretch is a sample's own positions; the lead that all share is the first one.
        key_starts: Likewise of the keys, where each sample has the lead before it.
        keys: Positions of the row that are these keys; None where it is the row as it is.
        padded: Positions of the row that make a padded batch of whole samples: ``[B, longest]``.
        places: Of each position of the row, its place in that batch: ``[T]``.
    """

    starts: torch.Tensor
    key_starts: torch.Tensor
    keys: torch.Tensor | None
    padded: torch.Tensor
    places: torch.Tensor

    @property
    def longest(self) -> int:
        """Positions of the longest sample."""
        return self.padded.shape[1]


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


def pack(joined: Joined) -> Packed:
    """Work out, on the host, what attention and loss must know of rows; send it at once."""
    lead, longest = joined.lead, max(joined.lengths)
    lengths, shared = torch.tensor(joined.lengths), torch.arange(lead)
    own = lengths - lead
    ends = lead + own.cumsum(0)
    # Behind a sample's end stands its last position again: no other sample gets there, nor a zero.
    within = torch.arange(longest).minimum(lengths[:, None] - 1)
    padded = torch.where(within < lead, within, (ends - lengths)[:, None] + within)
    real = torch.arange(longest) < lengths[:, None]
    of_row = torch.arange(len(own)).repeat_interleave(own)
    position = torch.arange(lead, lead + len(of_row)) - (ends - lengths)[of_row]  # in its sample
    # The position before a target predicts it. It is the row's own: what rows share ends before an
    # image, and the first position of all is no target.
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
    starts, key_starts, keys, padded, places, position_ids, learnt, targets = sent
    starts = starts.int()
    # By one tensor for both, torch knows that queries and keys lie alike: more kernels serve then.
    key_starts = key_starts.int() if lead else starts
    padded = padded.view(-1, longest)
    samples = Samples(starts, key_starts, keys if lead else None, padded, places)
    return Packed(joined.embeds[None], position_ids[None], learnt, targets, samples)


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
    """Return ``[1, T, heads, d]``: causal attention within each sample of a packed row.

    As transformers calls it, without a mask: query is ``[1, heads, T, d]``; key and value may have
    fewer heads.
    """
    # Squeezed, not indexed: the backward pass of an index fills a tensor of zeros first.
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
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
    """Attend in a padded batch: where there is no kernel for samples of several lengths."""
    grouped = query.shape[1] != key.shape[1]
    # Looked up: of all ways to gather rows, torch takes this one back the quickest.
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
        key, value = (_all_heads(_of_samples(s, samples), query) for s in (key, value))
        starts, longest = (samples.starts, samples.key_starts), (samples.longest,) * 2
        out = varlen_attn(query, key, value, *starts, *longest, scale=scaling, **causal)
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
        key, value = (_of_samples(states, samples) for states in (key, value))
        starts, longest = (samples.starts, samples.key_starts), (samples.longest,) * 2
        given = {"softmax_scale": scaling, "causal": True}
        return flash_attn_varlen_func(query, key, value, *starts, *longest, **given)

    return attend


def _of_samples(states: torch.Tensor, samples: Samples) -> torch.Tensor:
    """Keys or values of whole samples: the kernels align the last query with the last key."""
    return states if samples.keys is None else states.index_select(0, samples.keys)


def _all_heads(states: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // states.shape[1]
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


AttentionInterface.register(PER_SAMPLE, attention_per_sample)


@contextmanager
def attending(model: PreTrainedModel, implementation: str = PER_SAMPLE) -> Iterator[None]:
    """For one forward only: generation and evaluation go on with the model's own attention."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


def packed_logits(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """The language model's output ``[n, V]`` where something is learnt, and nowhere else."""
    with attending(model):
        logits: torch.Tensor = model(
            inputs_embeds=packed.embeds,
            position_ids=packed.position_ids,
            use_cache=False,
            logits_to_keep=packed.learnt,
            samples=packed.samples,
        ).logits
    return logits.squeeze(0)


@torch.no_grad()
def packing_fault(model: PreTrainedModel, device: torch.device, lead: int = 0) -> str | None:
    """Why a language model's packed numbers are not its padded ones; None where they are.

    It is tried: three short rows of noise, which share fewer than three positions (``lead``),
    padded and packed. A model whose attention is not transformers' common one, or looks only so far
    back, is found so.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "it takes no logits_to_keep"
    if not model.is_backend_compatible():
        return "its attention is one of its own"
    padded, packed = _trial(model.get_input_embeddings().weight, device, lead)
    try:
        ours = packed_logits(model, packed).float()
        theirs = model(
            inputs_embeds=padded.embeds, attention_mask=padded.attention_mask, use_cache=False
        ).logits
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"it does not run packed ({type(error).__name__})"
    theirs = theirs[:, :-1][padded.targets[:, 1:] != IGNORED].float()
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6)
    # The order of sums alone moves half-precision numbers.
    if difference > (1e-4 if padded.embeds.dtype == torch.float32 else 0.05):
        return f"its outputs change by {difference:.2g}"
    # A window wider than the trial's rows: longer ones would show it.
    states = DynamicCache(config=model.config.get_text_config(decoder=True))
    plain = all(type(layer) is DynamicLayer for layer in states.layers)
    return None if plain else "some of its layers look only so far back"


def _trial(embedding: torch.Tensor, device: torch.device, lead: int) -> tuple[Spliced, Packed]:
    lengths = [4, 7, 5]
    drawn = torch.Generator().manual_seed(0)
    noise = torch.randn(sum(lengths), embedding.shape[1], generator=drawn) * 0.02
    first, *others = noise.to(device, embedding.dtype).split(lengths)
    own = [first, *(row[lead:] for row in others)]
    whole = [first, *(torch.cat([first[:lead], row[lead:]]) for row in others)]
    targets = [[IGNORED] * (lead + 1) + [0] * (length - lead - 1) for length in lengths]
    padded = pad(Joined(torch.cat(whole), lengths, targets))
    return padded, pack(Joined(torch.cat(own), lengths, targets, lead))
