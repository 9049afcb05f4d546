"""Tokens: what a language model reads of a sample, by its tokenizer alone."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoConfig

from minigpt4.assembly import build_template
from minigpt4.config import Config
from minigpt4.datasets.samples import RawSample
from minigpt4.models.build import load_prompts, visual_encoder_tokens
from minigpt4.models.language_model import most_positions
from minigpt4.models.llm_input import Learnt, Segment
from minigpt4.models.rows import describe_row, row_segments
from minigpt4.models.tokenizer import Tokenizer, load_tokenizer
from minigpt4.models.towers import PATCHES_PER_TOKEN
from minigpt4.preflight.plan import make_plan
from minigpt4.registry import Fault
from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask

_READ = (  # what must be known of the model to tell tokens
    "llama_model",
    "prompt_path",
    "prompt_template",
    "max_txt_len",
    "end_sym",
    "num_query_token",
    "has_qformer",
    "image_size",
    "visual_encoder",
)

logger = logging.getLogger(__name__)


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

    def lengths(self, sample: RawSample, number: int) -> tuple[list[int], int]:
        """Tokens of each answer before any is cut, and the row's positions afterwards."""
        segments = self._segments(sample, number, sys.maxsize, None)
        answers = [len(segment) for segment in segments if isinstance(segment, Learnt)]
        cut_off = sum(max(0, length - self.max_txt_len) for length in answers)
        return answers, sum(map(len, segments)) - cut_off

    def describe(self, sample: RawSample, number: int) -> str:
        """The sample by positions, and what of it is learnt."""
        segments = self._segments(sample, number, self.max_txt_len, self.longest)
        learnt = sum(len(s) for s in segments if isinstance(s, Learnt))
        total = sum(map(len, segments))
        head = f"what the model reads of {sample.key}: {total} positions, {learnt} of them learnt"
        return "\n".join([head, *describe_row(self.tokenizer, segments)])

    def _segments(
        self, sample: RawSample, number: int, max_txt_len: int, longest: int | None
    ) -> list[Segment]:
        images = [torch.empty(self.image_tokens, 0)] * len(sample.images)
        row = self.task.row(sample.text, len(images), number, self.tokenizer, self.end_sym)
        return row_segments(self.tokenizer, row, images, max_txt_len, longest)


def build_reader(config: Config, faults: Sequence[Fault]) -> Reader | None:
    """The language model's reading of a row; None where too little is known of it."""
    model = make_plan(config, "training", faults).model
    lacking = [fault for fault in faults if fault.key.split(".")[-1] in _READ]
    if lacking or not {*_READ} <= {*model}:
        told = f"{lacking[0].key}: {lacking[0].text}" if lacking else f"arch {config.arch}"
        logger.warning("lengths are told in words, not tokens: %s", told)
        return None
    patches = visual_encoder_tokens(model["image_size"], model["visual_encoder"])
    prompts = load_prompts(model["prompt_path"], model["prompt_template"])
    return Reader(
        load_tokenizer(model["llama_model"], model.get("bos", "auto")),
        ImageTextPretrainTask(prompts, seed=0, rank=0, template=build_template(config)),
        model["num_query_token"] if model["has_qformer"] else patches // PATCHES_PER_TOKEN,
        model["max_txt_len"],
        model["end_sym"],
        most_positions(AutoConfig.from_pretrained(model["llama_model"])),
    )
