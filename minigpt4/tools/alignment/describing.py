"""Describing: pictures → drafts, by the stage-1 model in the paper's words.

Which pictures are described together depends on the batch size and their order alone, so a run cut
short changes no draft.
"""

import itertools
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.apps.captions import read_ahead
from minigpt4.apps.captions_input import Row
from minigpt4.chat import Chat, GenerationOptions
from minigpt4.conversation import IMAGE_TEXT, Conversation, Template, plain_text
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.tools.alignment.journal import Journal
from minigpt4.tools.alignment.pictures import Picture

QUESTION = (
    "Describe this image in detail. Give as many details as possible. Say everything you see."
)
CONTINUE = "Continue"
ENOUGH = 80  # tokens; an answer that does not exceed them is continued

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Describing:
    """How pictures are described; the paper's numbers.

    Attributes:
        num_beams: Beams of the search.
        max_new_tokens: Longest answer, of which a description has one or two.
        batch_size: Pictures described together.
        threads: Read pictures in the background.
    """

    num_beams: int = 5
    max_new_tokens: int = 200
    batch_size: int = 8
    threads: int = 4

    def options(self, options: GenerationOptions) -> GenerationOptions:
        """A chat's options made the paper's: the likeliest words, and no penalty on any."""
        return GenerationOptions(
            template=options.template,
            max_length=options.max_length,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )


def paper_prompt(template: Template, said: str | None = None) -> str:
    """What the model reads before a description, or before the rest of one.

    Args:
        template: Of the language model. Of Vicuna v0 this is the paper's own prompt to the
            letter; of any other, the same words in that template.
        said: The description so far, without anything that a template would take for control.
    """
    if (template.separator, template.user) == ("###", "Human: "):
        first = f"###Human: {IMAGE_TEXT} {QUESTION} ###Assistant:"
        return first if said is None else f"{first} {said} ###Human: {CONTINUE} ###Assistant:"
    conversation = Conversation(template)
    conversation.add_image()
    conversation.ask(QUESTION)
    if said is not None:
        conversation.answer(said)
        conversation.ask(CONTINUE)
    return conversation.prompt()


@torch.no_grad()
def describe_batch(
    chat: Chat, options: GenerationOptions, pixels: Sequence[torch.Tensor]
) -> list[list[str]]:
    """For each picture its description: one answer, or two where the first was a short one.

    Args:
        chat: The stage-1 model.
        options: How to generate.
        pixels: Of each picture, ``[3, s, s]``.
    """
    template, tokenizer = chat.template, chat.model.tokenizer
    encoded = chat.model.encode_img(torch.stack([*pixels]).to(chat.model.device))
    asked = [paper_prompt(template)] * len(pixels)
    shown = [[image] for image in encoded]
    said = [[text] for text in chat.generate(asked, shown, template.stops, options)]
    short = [n for n, (text,) in enumerate(said) if len(tokenizer.encode(text)) <= ENOUGH]
    if short:
        controls = (*template.forbidden, *tokenizer.special)
        asked = [paper_prompt(template, plain_text(said[n][0], controls)) for n in short]
        rest = chat.generate(asked, [shown[n] for n in short], template.stops, options)
        for n, text in zip(short, rest, strict=True):
            said[n].append(text)
    return said


def write_drafts(
    chat: Chat, describing: Describing, pictures: Sequence[Picture], journal: Journal
) -> None:
    """Describe all pictures that the journal lacks; a row for each, in their order.

    Raises:
        MiniGPT4Error: for a full disk or memory, or numbers that overflow.
    """
    options, done = describing.options(chat.options), len(journal.rows)
    batches = _batches(pictures, describing.batch_size, done)
    calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
    with (
        logging_redirect_tqdm(),
        tqdm(
            desc="drafts", total=len(pictures), initial=done, mininterval=calm, unit="picture"
        ) as bar,
    ):
        for batch, read in read_ahead(batches, chat, describing.threads):
            rows = _describe(chat, options, [pictures[n] for n, _ in batch], read)
            new = [row for (n, _), row in zip(batch, rows, strict=True) if n >= done]
            journal.add(new)
            bar.update(len(new))


def _batches(
    pictures: Sequence[Picture], batch_size: int, done: int
) -> Iterator[list[tuple[int, Row]]]:
    """Batches that hold a picture not yet done; always cut at the same places."""
    rows = enumerate(Row({}, picture.path, QUESTION) for picture in pictures)
    while batch := list(itertools.islice(rows, batch_size)):
        if batch[-1][0] >= done:
            yield batch


def _describe(
    chat: Chat,
    options: GenerationOptions,
    pictures: Sequence[Picture],
    read: Sequence[torch.Tensor | DataError],
) -> list[dict[str, Any]]:
    """The journal's rows of a batch."""
    pixels = [found for found in read if isinstance(found, torch.Tensor)]
    try:
        said = iter(describe_batch(chat, options, pixels) if pixels else [])
    except torch.OutOfMemoryError as error:
        text = f"the GPU's memory is too small for {len(pixels)} pictures at once"
        raise MiniGPT4Error(f"{text}; go on with a smaller --batch-size") from error
    rows: list[dict[str, Any]] = []
    for picture, found in zip(pictures, read, strict=True):
        row = {"image_id": picture.image_id, "image": picture.name}
        if isinstance(found, DataError):
            rows.append({**row, "error": str(found)})
        else:
            answers = next(said)
            draft = " ".join(answer for answer in answers if answer)
            rows.append({**row, "answers": answers, "draft": draft})
    return rows
