"""Likelihood: how probable given answers are, for multiple choice without generating anything.

A prompt with its images is read once; all its choices continue from the same keys and values.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
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
    """How probable a choice is."""

    log_probability: float  # sum over its tokens, natural logarithm
    tokens: int
    greedy: bool  # whether each token is the most likely one at its place


class Chosen(str):
    """The choice that is most likely as a whole, with the ``likelihoods`` of every choice."""

    likelihoods: list[ChoiceLikelihood]


class _Row(NamedTuple):
    """A choice's tokens, after a prompt of the batch."""

    prompt: int
    ids: list[int]


def most_likely_choices(
    chat: Generator,
    prompts: Sequence[str],
    images: Sequence[Sequence[torch.Tensor]],
    choices: Sequence[Sequence[str]],
    endings: Sequence[str],
) -> list[str]:
    """Return the most likely choice for each prompt, as :class:`Chosen`; of equal ones the first.

    A choice is scored with the text that ended answers in training: that may be one token with the
    choice's last character, and tells a whole answer from the beginning of a longer one.

    Args:
        chat: Chat with the model.
        prompts: Texts with an ``<ImageHere>`` for each image.
        images: For each prompt its encoded images, ``[Q, H]`` each.
        choices: For each prompt at least one.
        endings: Ends of answers to each prompt.

    Raises:
        DataError: for a prompt and choice that the language model has no positions for.
    """
    chosen: list[str] = []
    ended = [[choice + end for choice in own] for own, end in zip(choices, endings, strict=True)]
    scored = choice_likelihoods(chat, prompts, images, ended)
    for own, likelihoods in zip(choices, scored, strict=True):
        totals = [likelihood.log_probability for likelihood in likelihoods]
        choice = Chosen(own[totals.index(max(totals))])
        choice.likelihoods = likelihoods
        chosen.append(choice)
    return chosen


def output_fields(output: str) -> dict[str, Any]:
    """Return what an evaluation keeps of an output: the text and, of choices, their likelihoods."""
    if not isinstance(output, Chosen):
        return {"output": output}
    return {
        "output": str(output),
        "log_probabilities": [own.log_probability for own in output.likelihoods],
        "tokens": [own.tokens for own in output.likelihoods],
    }


@torch.no_grad()
def choice_likelihoods(
    chat: Generator,
    prompts: Sequence[str],
    images: Sequence[Sequence[torch.Tensor]],
    choices: Sequence[Sequence[str]],
) -> list[list[ChoiceLikelihood]]:
    """Return how probable each choice of each prompt is as the beginning of the answer.

    A choice is tokenised alone, as an answer is in training: give a whole answer with its end
    symbol, or its last token may be one that no answer ends in. The model computes in its own
    precision, the probabilities in fp32. Arguments as in :func:`most_likely_choices`.

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
    score = _score_after_prompts if can_go_on else _score_whole_rows
    with chat.waiting.join():
        found = score(model, contexts, rows) if rows else []
    scored: list[list[ChoiceLikelihood]] = [[] for _ in contexts]
    for row, (total, greedy) in zip(rows, found, strict=True):
        scored[row.prompt].append(ChoiceLikelihood(total, len(row.ids), greedy))
    return scored


def _rows(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], choices: Sequence[Sequence[str]]
) -> list[_Row]:
    """Return all choices of all prompts as tokens; each has one, and fits after its prompt."""
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


def _score_after_prompts(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], rows: Sequence[_Row]
) -> list[tuple[float, bool]]:
    """Return each row's log-probability and whether it is greedy; each prompt is read once."""
    check = FiniteLogits(model.compute_dtype)
    prefix = splice(contexts, model.embed_tokens, model.device, pad_side="left")
    read = DynamicCache(config=model.llama_model.config)
    logits = _read(model, prefix.embeds, prefix.attention_mask, read, only_last=True)[:, -1]
    # The prompt predicts the first token: a choice of one token is done.
    firsts = on_device([row.ids[0] for row in rows], logits.device)
    scores, hits = _score(logits[[row.prompt for row in rows]], firsts, check)
    totals, greedy = scores.cpu(), hits.cpu()
    for chosen in _groups([index for index, row in enumerate(rows) if len(row.ids) > 1]):
        group = [rows[index] for index in chosen]
        prompts = [row.prompt for row in group]
        states = DynamicCache(config=model.llama_model.config)
        for index, layer in enumerate(read.layers):
            states.update(layer.keys[prompts], layer.values[prompts], index)
        inputs = _padded([row.ids[:-1] for row in group], 0, model.device)
        targets = _padded([row.ids[1:] for row in group], IGNORED, model.device)
        mask = torch.cat([prefix.attention_mask[prompts], (targets != IGNORED).long()], dim=1)
        embeds = model.embed_tokens(inputs.flatten()).unflatten(0, inputs.shape)
        logits = _read(model, embeds, mask, states)
        scores, hits = _score(logits.flatten(0, 1), targets.flatten(), check)
        totals[chosen] += scores.view_as(targets).sum(dim=1).cpu()
        greedy[chosen] &= hits.view_as(targets).all(dim=1).cpu()
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


def _score_whole_rows(
    model: MiniGPT4, contexts: Sequence[Sequence[Segment]], rows: Sequence[_Row]
) -> list[tuple[float, bool]]:
    """Return the same for a model whose states cannot be kept: each row is read as a whole."""
    check = FiniteLogits(model.compute_dtype)
    found = []
    for chosen in _groups(range(len(rows))):
        group = [rows[index] for index in chosen]
        segments = [[*contexts[row.prompt], Learnt(row.ids)] for row in group]
        spliced = splice(segments, model.embed_tokens, model.device)
        scores, hits = _score(*target_logits(model.logits(spliced), spliced.targets), check)
        lengths = [len(row.ids) for row in group]
        for part, own in zip(scores.split(lengths), hits.split(lengths), strict=True):
            found.append((part.sum().item(), bool(own.all())))
    return found


def _read(
    model: MiniGPT4,
    embeds: torch.Tensor,
    mask: torch.Tensor,
    states: DynamicCache,
    only_last: bool = False,
) -> torch.Tensor:
    """Return logits ``[B, S, V]`` of what follows the states, to which it is added."""
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


def _score(
    logits: torch.Tensor, targets: torch.Tensor, check: FiniteLogits
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities of targets ``[n]`` under logits ``[n, V]``, and which are greedy.

    For ignored targets that is 0 and true.
    """
    ignored = targets == IGNORED
    check(targets[:, None], logits[~ignored])
    loss = target_loss(logits, targets, reduction="none")
    return -loss, (logits.argmax(dim=-1) == targets) | ignored


def _padded(rows: Sequence[list[int]], filler: int, device: torch.device) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return on_device(pad_sequence(tensors, batch_first=True, padding_value=filler), device)


def _groups(indices: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), _ROWS):
        yield list(indices[start : start + _ROWS])
