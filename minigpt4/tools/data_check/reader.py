"""Reader: what a language model reads of a sample, by its tokenizer alone."""

import sys
from dataclasses import dataclass

import torch

from minigpt4.datasets.samples import RawSample, Text
from minigpt4.models.llm_input import Learnt
from minigpt4.models.rows import Row, describe_row, row_segments
from minigpt4.models.tokenizer import Tokenizer
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask


@dataclass(frozen=True)
class Reader:
    """What a language model reads of a sample, without its weights.

    Attributes:
        tokenizer: Its own.
        task: Says how samples are asked.
        image_tokens: Of one image.
        max_txt_len: Longest answer in tokens.
        end_sym: Behind a caption.
        longest: Positions that it can read.
    """

    tokenizer: Tokenizer
    task: ImageTextPretrainTask
    image_tokens: int
    max_txt_len: int
    end_sym: str
    longest: int | None

    def row(self, text: Text, images: int, number: int) -> Row:
        return self.task.row(text, images, number, self.tokenizer, self.end_sym)

    def lengths(self, sample: RawSample, number: int) -> tuple[list[int], int]:
        """Tokens of each answer before any is cut, and the row's positions afterwards."""
        images = [torch.empty(self.image_tokens, 0)] * len(sample.images)
        row = self.row(sample.text, len(images), number)
        segments = row_segments(self.tokenizer, row, images, max_txt_len=sys.maxsize)
        answers = [len(segment) for segment in segments if isinstance(segment, Learnt)]
        cut_off = sum(max(0, length - self.max_txt_len) for length in answers)
        return answers, sum(map(len, segments)) - cut_off

    def describe(self, sample: RawSample, number: int) -> str:
        """The sample by positions, and what of it is learnt."""
        images = [torch.empty(self.image_tokens, 0)] * len(sample.images)
        row = self.row(sample.text, len(images), number)
        segments = row_segments(self.tokenizer, row, images, self.max_txt_len, self.longest)
        learnt = sum(len(s) for s in segments if isinstance(s, Learnt))
        total = sum(map(len, segments))
        head = f"what the model reads of {sample.key}: {total} positions, {learnt} of them learnt"
        return "\n".join([head, *describe_row(self.tokenizer, segments)])
