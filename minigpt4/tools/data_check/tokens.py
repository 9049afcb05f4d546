"""Tokens: what a language model reads of a sample, by its tokenizer alone."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig

from minigpt4.checked import CheckedConfig
from minigpt4.datasets.samples import RawSample
from minigpt4.errors import Fault
from minigpt4.models.language_model import most_positions
from minigpt4.models.llm_input import Learnt, Segment, describe_row, row_segments
from minigpt4.models.tokenizer import Tokenizer, load_tokenizer
from minigpt4.registry import UnknownOptionError
from minigpt4.tasks import ImageTextPretrainTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """What a language model reads of a sample, without its weights."""

    tokenizer: Tokenizer
    task: ImageTextPretrainTask
    image_tokens: int  # of one image
    max_txt_len: int  # tokens of an answer, at most
    end_sym: str  # after a caption
    longest: int | None  # positions that the model reads, at most

    def lengths(self, sample: RawSample, number: int) -> tuple[list[int], int]:
        """Return the tokens of each answer before any is cut, and the row's positions after."""
        segments = self._segments(sample, number, sys.maxsize, None)
        answers = [len(segment) for segment in segments if isinstance(segment, Learnt)]
        cut_off = sum(max(0, length - self.max_txt_len) for length in answers)
        return answers, sum(map(len, segments)) - cut_off

    def describe(self, sample: RawSample, number: int) -> str:
        """Describe the sample by positions, and which of them are target tokens."""
        segments = self._segments(sample, number, self.max_txt_len, self.longest)
        targets = sum(len(s) for s in segments if isinstance(s, Learnt))
        total = sum(map(len, segments))
        head = f"what the model reads of {sample.key}: {total} positions, {targets} of them targets"
        return "\n".join([head, *describe_row(self.tokenizer, segments)])

    def _segments(
        self, sample: RawSample, number: int, max_txt_len: int, longest: int | None
    ) -> list[Segment]:
        images = [torch.empty(self.image_tokens, 0)] * len(sample.images)
        row = self.task.row(sample.text, len(images), number, self.tokenizer, self.end_sym)
        return row_segments(self.tokenizer, row, images, max_txt_len, longest)


def build_reader(checked: CheckedConfig, faults: Sequence[Fault]) -> Reader | None:
    """Return the reader of a language model; None where too little is known of the model."""
    options = checked.model_options
    try:
        folder, prompts = options.llama_model, options.load_prompts()
        task = ImageTextPretrainTask(prompts, seed=0, rank=0, template=checked.template)
        return Reader(
            load_tokenizer(folder, options.bos),
            task,
            options.image_tokens,
            options.max_txt_len,
            options.end_sym,
            most_positions(AutoConfig.from_pretrained(folder, trust_remote_code=False)),
        )
    except UnknownOptionError:
        reasons = [f"{fault.key}: {fault.text}" for fault in faults]
        told = "; ".join(reasons) or f"arch {checked.config.arch}"
        logger.warning("lengths are told in words, not tokens: %s", told)
        return None
