"""Splice: token segments and image embeddings → the rows that the language model reads.

Training, generation and scoring all go through it. Lengths are known here, so that nothing is ever
inferred from a pad id.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

IGNORED = -100
IMAGE_MARK = "<ImageHere>"

Segment = list[int] | torch.Tensor  # token ids, or embeddings [n, D]
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Joined:
    """B rows one behind the other.

    Attributes:
        embeds: ``[T, D]``.
        lengths: Positions of each row, its lead among them.
        answers: Ids to learn, at the end of each row.
        lead: Positions with which every row begins; they stand in ``embeds`` once, before all rows,
            unless there are none.
    """

    embeds: torch.Tensor
    lengths: list[int]
    answers: list[list[int]]
    lead: int = 0

    @property
    def learnt(self) -> int:
        """Targets of all rows."""
        return sum(map(len, self.answers))


@dataclass(frozen=True)
class Spliced:
    """A padded batch: B rows of at most S positions.

    Attributes:
        embeds: ``[B, S, D]``; zero where padded.
        attention_mask: ``[B, S]``, 1 on real positions.
        targets: ``[B, S]``, the token id to predict *at* a position, -100 elsewhere.
        lengths: Real positions of each row.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]


def join(
    contexts: Sequence[Sequence[Segment]],
    answers: Sequence[list[int]],
    embed: Embed,
    device: torch.device,
    share_lead: bool = False,
) -> Joined:
    """Each row's context segments and its answer, behind each other; only the answer is a target.

    Args:
        contexts: For each row its segments: token ids, or image embeddings ``[n, D]``.
        answers: For each row the ids to learn; empty when generating.
        embed: The language model's input embedding, ids ``[n]`` → ``[n, D]``.
        device: Where the language model's input lives.
        share_lead: Keep what all rows begin with once.
    """
    lead = _common_lead(contexts) if share_lead else 0
    rows = [[*context, answer] for context, answer in zip(contexts, answers, strict=True)]
    lengths = [sum(map(len, row)) for row in rows]
    if lead:
        first = rows[0][0][:lead]
        rows = [[row[0][lead:], *row[1:]] for row in rows]
        rows[0].insert(0, first)
    parts = [part for row in rows for part in row if len(part)]
    ids = [i for part in parts if not isinstance(part, torch.Tensor) for i in part]
    words = embed(on_device(ids, device))
    pieces: list[torch.Tensor] = []
    used = 0
    for part in parts:
        if isinstance(part, torch.Tensor):
            pieces.append(part.to(words))
        else:
            pieces.append(words[used : used + len(part)])
            used += len(part)
    return Joined(torch.cat(pieces), lengths, list(answers), lead)


def _common_lead(contexts: Sequence[Sequence[Segment]]) -> int:
    """Tokens with which all rows begin, before their first image."""
    firsts: list[list[int]] = []
    for context in contexts:
        if len(context) < 2 or isinstance(context[0], torch.Tensor):
            return 0
        if not isinstance(context[1], torch.Tensor):
            return 0
        firsts.append(context[0])
    columns = zip(*firsts, strict=False)  # as long as the shortest
    return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))


def on_device(numbers: Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Whole numbers as a tensor, without waiting for what the device is still at."""
    made = numbers if isinstance(numbers, torch.Tensor) else torch.tensor(numbers, dtype=torch.long)
    return made.to(device, non_blocking=True)


def pad(joined: Joined, pad_side: Literal["left", "right"] = "right") -> Spliced:
    """Rows without a shared lead, each filled up to the longest."""
    assert not joined.lead
    count, longest = len(joined.lengths), max(joined.lengths)
    real = torch.zeros(count, longest, dtype=torch.bool)
    targets = torch.full((count, longest), IGNORED, dtype=torch.long)
    for index, (length, answer) in enumerate(zip(joined.lengths, joined.answers, strict=True)):
        first = longest - length if pad_side == "left" else 0
        end = first + length
        real[index, first:end] = True
        targets[index, end - len(answer) : end] = torch.tensor(answer, dtype=torch.long)
    places = on_device(real.flatten().nonzero()[:, 0], joined.embeds.device)
    width = joined.embeds.shape[1]
    padded = joined.embeds.new_zeros(count * longest, width).index_copy(0, places, joined.embeds)
    return Spliced(
        padded.view(count, longest, width),
        on_device(real.long(), padded.device),
        on_device(targets, padded.device),
        joined.lengths,
    )


def splice(
    contexts: Sequence[Sequence[Segment]],
    answers: Sequence[list[int]],
    embed: Embed,
    device: torch.device,
    pad_side: Literal["left", "right"] = "right",
) -> Spliced:
    """Rows joined and padded: on the ``right`` to train, on the ``left`` to generate.

    Arguments are those of :func:`join`.
    """
    return pad(join(contexts, answers, embed, device), pad_side)
