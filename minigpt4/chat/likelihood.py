"""Likelihood: how probable given answers are, for multiple choice without generating anything.

A prompt with its images is read once; all its choices go on from the same keys and values.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from minigpt4.chat.generation import FiniteLogits
from minigpt4.chat.kept_states import KeptStates
from minigpt4.errors import DataError
from minigpt4.models.language_model import learned_positions
from minigpt4.models.llm_input import (
    IGNORED,
    Learnt,
    Segment,
    on_device,
    splice,
    target_logits,
    target_loss,
)
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks import Generator

_ROWS = 32  # choices scored at once: each has the prompt's keys and values to itself


class ChoiceLikelihood(NamedTuple):
    """How probable a choice is.

    Attributes:
        log_probability: Sum over its tokens, natural logarithm.
        tokens: How many they are; the mean is what does not favour short choices.
        greedy: Whether each of them is the likeliest at its place.
    """

    log_probability: float
    tokens: int
    greedy: bool


class _Row(NamedTuple):
    """A choice's tokens, behind a prompt of the batch."""

    prompt: int
    ids: list[int]


@torch.no_grad()
def choice_likelihoods(
    chat: Generator,
    prompts: Sequence[str],
    images: Sequence[Sequence[torch.Tensor]],
    choices: Sequence[Sequence[str]],
) -> list[list[ChoiceLikelihood]]:
    """For each prompt, how probable each of its choices is as the answer's beginning.

    A choice is tokenised alone, as an answer is in training, and nothing is put behind it: give it
    with its end symbol where it is a whole answer, or its last token may be one that no answer
    ends in. The model computes in its own precision, the probabilities in fp32.

    Args:
        chat: Its model is used; what it keeps of conversations is not touched.
        prompts: Texts with an ``<ImageHere>`` for each image; read all at once.
        images: For each prompt its encoded images, ``[Q, H]`` each.
        choices: For each prompt at least one.

    Raises:
        DataError: for a prompt without choices, a choice without a token, or one that the language
            model has no positions for.
        NonFiniteLogitsError: when the model's numbers overflow.
    """
    model = chat.model
    given = zip(prompts, images, strict=True)
    contexts = [model.prompt_segments(prompt, shown) for prompt, shown in given]
    rows = _rows(model, contexts, choices)
    # Where states cannot be cut at a position, nothing is kept of any model.
    can_go_on = KeptStates(1, model.llama_model.config).tokens > 0
    score = _score_behind_prompts if can_go_on else _score_whole_rows
    with chat.waiting.join():
        found = score(model, contexts, rows) if rows else []
    scored: list[list[ChoiceLikelihood]] = [[] for _ in contexts]
    for row, (total, greedy) in zip(rows, found, strict=True):
        scored[row.prompt].append(ChoiceLikelihood(total, len(row.ids), greedy))
    return scored


def _rows(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], choices: Sequence[Sequence[str]]
) -> list[_Row]:
    """All choices of all prompts as tokens; each has one, and fits behind its prompt."""
    most = learned_positions(model.llama_model)
    rows = []
    for prompt, (segments, own) in enumerate(zip(contexts, choices, strict=True)):
        if not own:
            raise DataError(f"prompt {prompt + 1} has no choices to score; give at least one")
        for choice in own:
            ids = model.tokenizer.encode(choice)
            if not ids:
                raise DataError(
                    f"prompt {prompt + 1}: the choice {choice!r} has no token to score; leave it "
                    "out, or write what stands for it"
                )
            length = sum(map(len, segments)) + len(ids)
            if most is not None and length > most:
                raise DataError(
                    f"prompt {prompt + 1} and its choice take {length} tokens, and the language "
                    f"model has {most} positions for them; ask less"
                )
            rows.append(_Row(prompt, ids))
    return rows


def _score_behind_prompts(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], rows: Sequence[_Row]
) -> list[tuple[float, bool]]:
    """Of each row its log-probability, and whether it is greedy; each prompt is read once."""
    check = FiniteLogits(model.compute_dtype)
    prefix = splice(contexts, model.embed_tokens, model.device, pad_side="left")
    read = DynamicCache(config=_text_config(model))
    logits = _read(model, prefix.embeds, prefix.attention_mask, read, only_last=True)[:, -1]
    # A first token is predicted by the prompt: whoever has no other is done.
    firsts = on_device([row.ids[0] for row in rows], logits.device)
    told, likeliest = _told(logits[[row.prompt for row in rows]], firsts, check)
    totals, greedy = told.cpu(), likeliest.cpu()
    for chosen in _groups([index for index, row in enumerate(rows) if len(row.ids) > 1]):
        group = [rows[index] for index in chosen]
        prompts = [row.prompt for row in group]
        inputs = _padded([row.ids[:-1] for row in group], 0, model.device)
        targets = _padded([row.ids[1:] for row in group], IGNORED, model.device)
        mask = torch.cat([prefix.attention_mask[prompts], (targets != IGNORED).long()], dim=1)
        embeds = model.embed_tokens(inputs.flatten()).unflatten(0, inputs.shape)
        logits = _read(model, embeds, mask, _states_for(prompts, read, model))
        told, likeliest = _told(logits.flatten(0, 1), targets.flatten(), check)
        totals[chosen] += told.view_as(targets).sum(dim=1).cpu()
        greedy[chosen] &= likeliest.view_as(targets).all(dim=1).cpu()
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def _score_whole_rows(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], rows: Sequence[_Row]
) -> list[tuple[float, bool]]:
    """Likewise, each row read from its first position on: nothing can be kept of such a model."""
    check = FiniteLogits(model.compute_dtype)
    found = []
    for chosen in _groups(range(len(rows))):
        group = [rows[index] for index in chosen]
        segments = [[*contexts[row.prompt], Learnt(row.ids)] for row in group]
        spliced = splice(segments, model.embed_tokens, model.device)
        told, likeliest = _told(*target_logits(model.logits(spliced), spliced.targets), check)
        lengths = [len(row.ids) for row in group]
        for part, hits in zip(told.split(lengths), likeliest.split(lengths), strict=True):
            found.append((part.sum().item(), bool(hits.all())))
    return found


def _read(
    model: MiniGPT4,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    states: DynamicCache,
    only_last: bool = False,
) -> torch.Tensor:
    """Logits ``[B, S, V]`` of what comes behind the states, which then hold it, too."""
    language_model, given = model.llama_model, dict[str, Any]()
    names = inspect.signature(language_model.forward).parameters
    if "position_ids" in names:  # others work their positions out from the mask
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        given["position_ids"] = positions[:, -embeds.shape[1] :]
    if only_last and "logits_to_keep" in names:
        given["logits_to_keep"] = 1
    output = language_model(
        inputs_embeds=embeds, attention_mask=mask, past_key_values=states, use_cache=True, **given
    )
    assert isinstance(output.logits, torch.Tensor)
    return output.logits


def _told(
    logits: torch.Tensor, targets: torch.Tensor, check: FiniteLogits
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of targets ``[n]``, by logits ``[n, V]``: log-probabilities, and which are the likeliest.

    Of what is ignored it is 0, and true.
    """
    ignored = targets == IGNORED
    check(targets[:, None], logits[~ignored])
    loss = target_loss(logits, targets, reduction="none")
    return -loss, (logits.argmax(dim=-1) == targets) | ignored


def _states_for(prompts: list[int], read: DynamicCache, model: MiniGPT4) -> DynamicCache:
    """Keys and values of these prompts, one row for each, to be added to."""
    states = DynamicCache(config=_text_config(model))
    for index, layer in enumerate(read.layers):
        states.update(layer.keys[prompts], layer.values[prompts], index)
    return states


def _text_config(model: MiniGPT4) -> Any:
    return model.llama_model.config.get_text_config(decoder=True)


def _padded(rows: Sequence[list[int]], filler: int, device: torch.device) -> torch.Tensor:
    longest = max(map(len, rows))
    return on_device(torch.tensor([row + [filler] * (longest - len(row)) for row in rows]), device)


def _groups(indices: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), _ROWS):
        yield list(indices[start : start + _ROWS])
