"""LLM input: prompts, answers and image embeddings → the rows that the language model reads.

Training, generation and scoring all go through it. Lengths are known here, so that nothing is ever
inferred from a pad id.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from minigpt4.errors import DataError
from minigpt4.models.tokenizer import Tokenizer

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


class Exchange(NamedTuple):
    """A prompt, with an ``<ImageHere>`` for each image, and the answer that is learnt behind it.

    Both stand as the language model reads them: with roles, separators and the end symbol.
    """

    prompt: str
    answer: str


Row = Sequence[Exchange]


def stage_rows(
    text: Sequence[str], prompts: Sequence[str] | None, end_sym: str
) -> list[list[Exchange]]:
    """Rows as both stages have them: one prompt, and behind it the text with its end symbol.

    Args:
        text: What is learnt.
        prompts: One for each; None in stage 1, where bos and the image alone come first.
        end_sym: Put behind every text.
    """
    asked = [IMAGE_MARK] * len(text) if prompts is None else prompts
    return [
        [Exchange(prompt, answer + end_sym)] for prompt, answer in zip(asked, text, strict=True)
    ]


def prompt_segments(
    tokenizer: Tokenizer, prompt: str, images: Sequence[torch.Tensor]
) -> list[Segment]:
    """A prompt as segments: bos if there is one, text, an image ``[Q, H]`` at each ``<ImageHere>``.

    Each stretch of text is tokenised on its own, so that a trailing space becomes a token. Of a
    language model without bos nothing comes first; a bos that the prompt begins with is enough.

    Raises:
        DataError: when marks and images are not equally many.
    """
    first, *others = _text_segments(tokenizer, prompt, images)
    assert isinstance(first, list)
    if tokenizer.bos_id is not None and first[:1] != [tokenizer.bos_id]:
        first = [tokenizer.bos_id, *first]
    return [first, *others]


def _text_segments(
    tokenizer: Tokenizer, text: str, images: Sequence[torch.Tensor]
) -> list[Segment]:
    parts = text.split(IMAGE_MARK)
    if len(parts) - 1 != len(images):
        raise DataError(
            f"the prompt has {len(parts) - 1} {IMAGE_MARK} for {len(images)} images: {text!r}"
        )
    segments: list[Segment] = [tokenizer.encode(parts[0])]
    for image, part in zip(images, parts[1:], strict=True):
        segments += [image, tokenizer.encode(part)]
    return segments


def row_segments(
    tokenizer: Tokenizer,
    row: Row,
    images: Sequence[torch.Tensor],
    max_txt_len: int,
    longest: int | None = None,
) -> list[Segment]:
    """A row as segments, its answers :class:`Learnt`.

    Args:
        tokenizer: The language model's.
        row: At least one exchange.
        images: Of all its prompts, in order, ``[Q, H]`` each.
        max_txt_len: Longest answer in tokens; truncation drops the end symbol, as in the original.
        longest: Positions at which the row is cut; none without.

    Raises:
        DataError: when marks and images are not equally many.
    """
    marks = [exchange.prompt.count(IMAGE_MARK) for exchange in row]
    if sum(marks) != len(images):
        raise DataError(
            f"the prompt has {sum(marks)} {IMAGE_MARK} for {len(images)} images: {row[0].prompt!r}"
        )
    segments: list[Segment] = []
    shown = iter(images)
    for number, (exchange, count) in enumerate(zip(row, marks, strict=True)):
        own = [next(shown) for _ in range(count)]
        of_prompt = prompt_segments if number == 0 else _text_segments
        segments += of_prompt(tokenizer, exchange.prompt, own)
        segments.append(Learnt(tokenizer.encode(exchange.answer)[:max_txt_len]))
    return segments if longest is None else _cut(segments, longest)


def _cut(segments: Sequence[Segment], longest: int) -> list[Segment]:
    """The first positions of a row."""
    kept: list[Segment] = []
    for segment in segments:
        if longest <= 0:
            break
        part = segment[:longest]
        kept.append(Learnt(part) if isinstance(segment, Learnt) else part)  # type: ignore[arg-type]
        longest -= len(segment)
    return kept


def describe_row(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[str]:
    """What the model reads of a row, a line for each segment: positions, text, what is learnt."""
    lines, position = [], 0
    for segment in filter(len, segments):
        last = position + len(segment) - 1
        where = f"{position}" if len(segment) == 1 else f"{position}-{last}"
        if isinstance(segment, torch.Tensor):
            text = "the image"
        elif isinstance(segment, Learnt):
            pieces = " ".join(tokenizer.piece(token) for token in segment)
            text = f"learnt: {tokenizer.decode(segment, skip_special=False)!r} ({pieces})"
        else:
            text = f"{tokenizer.decode(segment, skip_special=False)!r}"
        lines.append(f"  {where:>9}  {text}")
        position += len(segment)
    return lines
