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


class Learnt(list[int]):
    """Token ids that are learnt; a segment like others otherwise."""


Segment = list[int] | torch.Tensor  # token ids, or embeddings [n, D]
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Joined:
    """B rows one behind the other.

    Attributes:
        embeds: ``[T, D]``.
        lengths: Positions of each row, its lead among them.
        targets: Of each row, the id to predict *at* a position, -100 elsewhere.
        lead: Positions with which every row begins; they stand in ``embeds`` once, before all rows,
            unless there are none.
    """

    embeds: torch.Tensor
    lengths: list[int]
    targets: list[list[int]]
    lead: int = 0

    @property
    def learnt(self) -> int:
        """How many targets all rows have."""
        return sum(target != IGNORED for row in self.targets for target in row)


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
    rows: Sequence[Sequence[Segment]], embed: Embed, device: torch.device, share_lead: bool = False
) -> Joined:
    """Each row's segments, behind each other; only what is :class:`Learnt` is a target.

    Args:
        rows: Of each its segments: token ids, ids to learn, or image embeddings ``[n, D]``.
        embed: The language model's input embedding, ids ``[n]`` → ``[n, D]``.
        device: Where the language model's input lives.
        share_lead: Keep what all rows begin with once.
    """
    lengths = [sum(map(len, row)) for row in rows]
    targets = [_targets(row) for row in rows]
    lead = _common_lead(rows) if share_lead else 0
    parts = [part for row in rows for part in row]
    if lead:
        parts = [rows[0][0][:lead]]
        parts += [part for row in rows for part in (row[0][lead:], *row[1:])]
    parts = [part for part in parts if len(part)]
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
    return Joined(torch.cat(pieces), lengths, targets, lead)


def _targets(row: Sequence[Segment]) -> list[int]:
    targets: list[int] = []
    for part in row:
        targets += part if isinstance(part, Learnt) else [IGNORED] * len(part)
    # Nothing stands before the first position that could predict it.
    return [IGNORED, *targets[1:]] if targets else []


def _common_lead(rows: Sequence[Sequence[Segment]]) -> int:
    """Tokens with which all rows begin, before their first image."""
    firsts: list[list[int]] = []
    for row in rows:
        if len(row) < 2 or isinstance(row[0], torch.Tensor):
            return 0
        if not isinstance(row[1], torch.Tensor):
            return 0
        firsts.append(row[0])
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
    for index, (length, row) in enumerate(zip(joined.lengths, joined.targets, strict=True)):
        first = longest - length if pad_side == "left" else 0
        real[index, first : first + length] = True
        targets[index, first : first + length] = torch.tensor(row, dtype=torch.long)
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
    rows: Sequence[Sequence[Segment]],
    embed: Embed,
    device: torch.device,
    pad_side: Literal["left", "right"] = "right",
) -> Spliced:
    """Rows joined and padded: on the ``right`` to train, on the ``left`` to generate.

    Arguments are those of :func:`join`.
    """
    return pad(join(rows, embed, device), pad_side)
