"""Describing: pictures → drafts, by the stage-1 model in the paper's words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minigpt4.apps.captions import make_batches, read_ahead
from minigpt4.apps.captions_input import Row
from minigpt4.chat import Chat, GenerationOptions
from minigpt4.conversation import IMAGE_TEXT, Conversation, Template, plain_text
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.tools.alignment.pictures import Picture
from minigpt4.tools.alignment.work_folder import Journal, progress_bar

QUESTION = (
    "Describe this image in detail. Give as many details as possible. Say everything you see."
)
CONTINUE = "Continue"
ENOUGH = 80  # tokens; an answer of not more is continued


@dataclass(frozen=True)
class Describing:
    """The paper's settings."""

    num_beams: int = 5
    max_new_tokens: int = 200  # of an answer; a description has one or two
    batch_size: int = 8
    threads: int = 4  # that read pictures in the background

    def options(self, options: GenerationOptions) -> GenerationOptions:
        """Return a chat's options made the paper's: no sampling and no penalty."""
        return GenerationOptions(
            template=options.template,
            max_length=options.max_length,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )


def paper_prompt(template: Template, said: str | None = None) -> str:
    """Return the prompt of a description, or of the rest of one after what was ``said``.

    For Vicuna v0 it is the paper's to the letter; for others, the same words in their template.
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
    """Return one answer for each picture ``[3, s, s]``, or two where the first was short."""
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
    """Describe all pictures that the journal lacks, in their order.

    Batches are cut at the same places after an interruption, which changes no draft.
    """
    options, done = describing.options(chat.options), len(journal.rows)
    rows = [Row({}, picture.path, QUESTION) for picture in pictures]
    batches = make_batches(rows, describing.batch_size, done)
    with progress_bar("drafts", len(rows), done, "picture") as bar:
        for batch, read in read_ahead(batches, chat, describing.threads):
            described = _describe(chat, options, [pictures[n] for n, _ in batch], read)
            new = [row for (n, _), row in zip(batch, described, strict=True) if n >= done]
            journal.add(new)
            bar.update(len(new))


def _describe(
    chat: Chat,
    options: GenerationOptions,
    pictures: Sequence[Picture],
    read: Sequence[torch.Tensor | DataError],
) -> Iterator[dict[str, Any]]:
    """Yield the journal's row of each picture of a batch."""
    pixels = [found for found in read if isinstance(found, torch.Tensor)]
    try:
        said = iter(describe_batch(chat, options, pixels) if pixels else [])
    except torch.OutOfMemoryError as error:
        text = f"the GPU's memory is too small for {len(pixels)} pictures at once"
        raise MiniGPT4Error(f"{text}; go on with a smaller --batch-size") from error
    for picture, found in zip(pictures, read, strict=True):
        row = {"image_id": picture.image_id, "image": picture.name}
        if isinstance(found, DataError):
            yield {**row, "error": str(found)}
        else:
            answers = next(said)
            yield {**row, "answers": answers, "draft": " ".join(filter(None, answers))}
