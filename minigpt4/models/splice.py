"""Splice: token segments and image embeddings → the rows that the language model reads.

Training, generation and scoring all go through it. Lengths are known here, so that nothing is ever
inferred from a pad id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

IGNORED = -100
IMAGE_MARK = "<ImageHere>"

Segment = list[int] | torch.Tensor  # token ids, or embeddings [n, D]


@dataclass(frozen=True)
class Spliced:
    """A padded batch: B rows of at most S positions.

    Attributes:
        embeds: ``[B, S, D]``; zero where padded.
        attention_mask: ``[B, S]``, 1 on real positions.
        targets: ``[B, S]``, the token id to predict *at* a position, -100 elsewhere.
        lengths: Real positions of each row.
        answers: Targets of each row, at its end.
    """

    embeds: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    lengths: list[int]
    answers: list[int]

    @property
    def learnt(self) -> int:
        """Targets of all rows."""
        return sum(self.answers)


def splice(
    contexts: Sequence[Sequence[Segment]],
    answers: Sequence[list[int]],
    embed: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    pad_side: Literal["left", "right"] = "right",
) -> Spliced:
    """Join each row's context segments and its answer; only the answer is a target.

    Args:
        contexts: For each row its segments: token ids, or image embeddings ``[n, D]``.
        answers: For each row the ids to learn; empty when generating.
        embed: The language model's input embedding, ids ``[n]`` → ``[n, D]``.
        device: Where the language model's input lives.
        pad_side: ``right`` to train, ``left`` to generate.
    """
    rows = [[*context, answer] for context, answer in zip(contexts, answers, strict=True)]
    all_ids = [
        i for row in rows for part in row if not isinstance(part, torch.Tensor) for i in part
    ]
    words = embed(torch.tensor(all_ids, dtype=torch.long, device=device))
    pieces: list[torch.Tensor] = []
    used = 0
    for row in rows:
        parts = []
        for part in row:
            if isinstance(part, torch.Tensor):
                parts.append(part.to(words))
            else:
                parts.append(words[used : used + len(part)])
                used += len(part)
        pieces.append(torch.cat(parts))
    lengths = [len(piece) for piece in pieces]
    longest = max(lengths)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    padded = []
    for index, (piece, answer) in enumerate(zip(pieces, answers, strict=True)):
        gap = longest - len(piece)
        first = gap if pad_side == "left" else 0
        end = first + len(piece)
        mask[index, first:end] = 1
        targets[index, end - len(answer) : end] = torch.tensor(answer, dtype=torch.long)
        sides = (0, 0, first, longest - end)
        padded.append(torch.nn.functional.pad(piece, sides))
    embeds, told = torch.stack(padded), [len(answer) for answer in answers]
    return Spliced(embeds, mask.to(device), targets.to(device), lengths, told)
