"""Rows: prompts and answers → the segments that the splice joins, one row of the batch each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from minigpt4.errors import DataError
from minigpt4.models.llm_input import IMAGE_MARK, Learnt, Segment
from minigpt4.models.tokenizer import Tokenizer


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
