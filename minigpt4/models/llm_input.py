"""LLM input: prompts, answers and image embeddings → the rows that the language model reads.

Training, generation and scoring all use it, and the loss on its target tokens. Lengths are known
here, so that nothing is ever inferred from a pad id.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from minigpt4.errors import DataError
from minigpt4.models.tokenizer import Tokenizer

IGNORED = -100
IMAGE_MARK = "<ImageHere>"


class Learnt(list[int]):
    """Token ids that are targets; otherwise a segment like others."""


Segment = list[int] | Tensor  # token ids, or embeddings [n, D]
Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Joined:
    """B rows one after the other.

    Attributes:
        embeds: ``[T, D]``; the positions that rows share come once, before all rows.
        lengths: Positions of each row, the shared ones included.
        targets: For each row, the id to predict *at* a position, -100 elsewhere.
        lead: Positions with which every row begins, if they are shared.
    """

    embeds: Tensor
    lengths: list[int]
    targets: list[list[int]]
    lead: int = 0


@dataclass(frozen=True)
class Spliced:
    """A padded batch: B rows of at most S positions.

    Attributes:
        embeds: ``[B, S, D]``; zero where padded.
        attention_mask: ``[B, S]``, 1 on real positions.
        targets: ``[B, S]``, the token id to predict *at* a position, -100 elsewhere.
        lengths: Real positions of each row.
    """

    embeds: Tensor
    attention_mask: Tensor
    targets: Tensor
    lengths: list[int]


def join(
    rows: Sequence[Sequence[Segment]], embed: Embed, device: torch.device, share_lead: bool = False
) -> Joined:
    """Put rows one after the other, with what all begin with only once for ``share_lead``.

    ``embed``, ids ``[n]`` → ``[n, D]``, is called once, on the language model's device.
    """
    lead = _common_lead(rows) if share_lead else 0
    parts = [rows[0][0][:lead]] if lead else []
    for row in rows:
        parts += [row[0][lead:], *row[1:]]
    texts = [part for part in parts if not isinstance(part, Tensor)]
    words = embed(on_device([i for text in texts for i in text], device))
    pieces = iter(words.split([len(text) for text in texts]))
    embeds = [part.to(words) if isinstance(part, Tensor) else next(pieces) for part in parts]
    lengths = [sum(map(len, row)) for row in rows]
    return Joined(torch.cat(embeds), lengths, [_targets(row) for row in rows], lead)


def _targets(row: Sequence[Segment]) -> list[int]:
    targets: list[int] = []
    for part in row:
        targets += part if isinstance(part, Learnt) else [IGNORED] * len(part)
    return [IGNORED, *targets[1:]] if targets else []  # nothing predicts the first position


def _common_lead(rows: Sequence[Sequence[Segment]]) -> int:
    """Count the tokens with which all rows begin, before their first image."""
    for row in rows:
        if len(row) < 2 or isinstance(row[0], Tensor) or isinstance(row[1], list):
            return 0
    columns = zip(*(row[0] for row in rows), strict=False)  # as long as the shortest
    return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, columns))


def on_device(numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Return integers as a tensor on the device, without waiting for its pending work."""
    made = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, dtype=torch.long)
    return made.to(device, non_blocking=True)


def pad(joined: Joined, pad_side: Literal["left", "right"] = "right") -> Spliced:
    """Pad each of the rows, which must not share a lead, to the longest."""
    assert not joined.lead
    fill = partial(pad_sequence, batch_first=True, padding_side=pad_side)
    real = fill([torch.ones(length, dtype=torch.long) for length in joined.lengths])
    rows = [torch.tensor(row, dtype=torch.long) for row in joined.targets]
    targets = fill(rows, padding_value=IGNORED)
    places = on_device(real.flatten().nonzero()[:, 0], joined.embeds.device)
    padded = joined.embeds.new_zeros(real.numel(), joined.embeds.shape[1])
    padded = padded.index_copy(0, places, joined.embeds).unflatten(0, real.shape)
    mask, targets = on_device(real, padded.device), on_device(targets, padded.device)
    return Spliced(padded, mask, targets, joined.lengths)


def splice(
    rows: Sequence[Sequence[Segment]],
    embed: Embed,
    device: torch.device,
    pad_side: Literal["left", "right"] = "right",
) -> Spliced:
    """Join rows and pad them: on the ``right`` to train, on the ``left`` to generate."""
    return pad(join(rows, embed, device), pad_side)


class Exchange(NamedTuple):
    """A prompt, with an ``<ImageHere>`` for each image, and the answer that is its target.

    Both are written as the language model reads them: with roles, separators and the end symbol.
    """

    prompt: str
    answer: str


Row = Sequence[Exchange]


def stage_rows(
    text: Sequence[str], prompts: Sequence[str] | None, end_sym: str
) -> list[list[Exchange]]:
    """Return rows as both stages have them: a prompt (in stage 1 the image alone) and its text."""
    asked = [IMAGE_MARK] * len(text) if prompts is None else prompts
    return [[Exchange(*pair)] for pair in zip(asked, (t + end_sym for t in text), strict=True)]


def prompt_segments(tokenizer: Tokenizer, prompt: str, images: Sequence[Tensor]) -> list[Segment]:
    """Return the segments of a prompt that is still to be answered; see :func:`row_segments`."""
    return row_segments(tokenizer, [Exchange(prompt, "")], images, max_txt_len=0)[:-1]


def row_segments(
    tokenizer: Tokenizer,
    row: Row,
    images: Sequence[Tensor],
    max_txt_len: int,
    longest: int | None = None,
) -> list[Segment]:
    """Return a row as segments: bos if there is one, text, an image at each ``<ImageHere>``.

    Each stretch of text is tokenised on its own, so that a trailing space becomes a token; a prompt
    may begin with bos itself. Answers are :class:`Learnt` and cut at ``max_txt_len`` tokens, which
    drops the end symbol, as in the original; the row is cut at ``longest`` positions. The images
    are those of all prompts in order, ``[Q, H]`` each; another number is a ``DataError``.
    """
    marks = sum(exchange.prompt.count(IMAGE_MARK) for exchange in row)
    if marks != len(images):
        text = f"the prompt has {marks} {IMAGE_MARK} for {len(images)} images"
        raise DataError(f"{text}: {row[0].prompt!r}")
    segments: list[Segment] = []
    shown, bos = iter(images), [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for exchange in row:
        first, *others = map(tokenizer.encode, exchange.prompt.split(IMAGE_MARK))
        segments.append(first if segments or first[:1] == bos else [*bos, *first])
        for part in others:
            segments += [next(shown), part]
        segments.append(Learnt(tokenizer.encode(exchange.answer)[:max_txt_len]))
    return segments if longest is None else _cut(segments, longest)


def _cut(segments: Sequence[Segment], longest: int) -> list[Segment]:
    """The first positions of a row."""
    kept: list[Segment] = []
    for segment in segments:
        part = segment[: max(longest, 0)]
        kept.append(Learnt(part) if isinstance(segment, Learnt) else part)  # type: ignore[arg-type]
        longest -= len(segment)
    return kept


def describe_row(tokenizer: Tokenizer, segments: Sequence[Segment]) -> list[str]:
    """Describe what the model reads, a line for each segment: positions, text, targets."""
    lines, position = [], 0
    for segment in filter(len, segments):
        last = position + len(segment) - 1
        where = f"{position}" if len(segment) == 1 else f"{position}-{last}"
        text = "the image"
        if not isinstance(segment, Tensor):
            text = repr(tokenizer.decode(segment, skip_special=False))
        if isinstance(segment, Learnt):
            text = f"target: {text} ({' '.join(map(tokenizer.piece, segment))})"
        lines.append(f"  {where:>9}  {text}")
        position = last + 1
    return lines


def target_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy, in fp32, of logits ``[n, V]`` with ids ``[n]``; -100 count as 0."""
    return functional.cross_entropy(
        logits.float(), targets, reduction=reduction, ignore_index=IGNORED
    )


def target_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits ``[n, V]`` that predict the n targets not ignored, and these ``[n]``.

    Arguments are ``[B, S, V]`` and the ids to predict *at* each position, ``[B, S]``.
    """
    following = targets[:, 1:]
    predicted = following != IGNORED
    return logits[:, :-1][predicted], following[predicted]
