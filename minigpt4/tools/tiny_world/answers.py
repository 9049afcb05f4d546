"""Text generated for held-out scenes, for the figures of the quickstart and the benchmark."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minigpt4.chat import Chat
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.tools.tiny_world.phrases import QUESTION_KINDS, questions
from minigpt4.tools.tiny_world.scenes import Scene
from minigpt4.tools.tiny_world.scoring import share

_BATCH = 50
DESCRIBE = "Describe this image in detail."


@dataclass(frozen=True)
class Split:
    """Held-out scenes and their encoded pictures ``[N, Q, H]``."""

    scenes: list[Scene]
    images: torch.Tensor


def encode_split(chat: Chat, heldout: Sequence[tuple[Scene, Path]]) -> Split:
    """Every picture through the chat's own image path."""
    files = [file for _, file in heldout]
    batches = [chat.encode_images(files[i : i + _BATCH]) for i in range(0, len(files), _BATCH)]
    return Split([scene for scene, _ in heldout], torch.cat(batches))


def _generate(
    chat: Chat, prompts: Sequence[str], images: torch.Tensor, stop: str | tuple[str, ...]
) -> list[str]:
    options = replace(chat.options, do_sample=False, max_new_tokens=60)
    texts: list[str] = []
    for i in range(0, len(prompts), _BATCH):
        shown = [[image] for image in images[i : i + _BATCH]]
        texts += chat.generate(prompts[i : i + _BATCH], shown, stop, options)
    return texts


def write_captions(chat: Chat, images: torch.Tensor) -> list[str]:
    """What the model says right after each picture, as in stage 1."""
    return _generate(chat, [IMAGE_MARK] * len(images), images, "\n")


def answer_question(chat: Chat, asked: Sequence[str], images: torch.Tensor) -> list[str]:
    """The answer to one question about each picture, through the chat's conversation."""
    prompts = []
    for question in asked:
        conversation = chat.start().conversation
        conversation.add_image()
        conversation.ask(question)
        prompts.append(conversation.prompt())
    return _generate(chat, prompts, images, chat.template.stop)


def describe(chat: Chat, split: Split) -> list[str]:
    """The answer to "describe this image in detail" about each picture."""
    return answer_question(chat, [DESCRIBE] * len(split.scenes), split.images)


def question_figures(chat: Chat, split: Split, seed: int) -> dict[str, float]:
    """Share of exact answers for each kind of question."""
    rng = random.Random(seed)
    asked = [(index, q) for index, scene in enumerate(split.scenes) for q in questions(scene, rng)]
    images = split.images[torch.tensor([index for index, _ in asked])]
    answers = answer_question(chat, [question.text for _, question in asked], images)
    hits: dict[str, list[bool]] = {kind: [] for kind in QUESTION_KINDS}
    for (_, question), answer in zip(asked, answers, strict=True):
        hits[question.kind].append(answer == question.answer)
    return {kind: share(found) for kind, found in hits.items()}
