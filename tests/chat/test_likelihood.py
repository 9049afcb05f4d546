"""Likelihoods of choices: those of prompt and choice read as one row, however they are batched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from minigpt4.chat import Chat, NonFiniteLogitsError, load_chat
from minigpt4.chat.likelihood import ChoiceLikelihood, choice_likelihoods
from minigpt4.conversation import IMAGE_TEXT
from minigpt4.errors import DataError
from minigpt4.models.llm_input import Exchange, row_segments, splice, target_logits, target_loss
from tests.helpers.messages import one_line
from tests.helpers.other_llms import FAMILIES, KINDS, chat_options, save_gpt_neox, save_kind
from tests.helpers.repo import TINY

PROMPTS = [
    f"###Human: {IMAGE_TEXT} Is there a red circle? ###Assistant: ",
    f"###Human: {IMAGE_TEXT} {IMAGE_TEXT} What differs between the two? ###Assistant: ",
    "###Human: Say something. ###Assistant: ",
]
CHOICES = [
    ["yes", "no"],
    ["A blue square is left of a ring.", "nothing", " nothing", "\n", "A", "a###"],
    ["a large green triangle"],
]


@pytest.fixture
def images(chat: Chat, pictures: list[Path]) -> list[list[torch.Tensor]]:
    encoded = chat.encode_images(pictures[:3])
    return [[encoded[0]], [encoded[1], encoded[2]], []]


def read_whole(chat: Chat, prompt: str, shown: list[torch.Tensor], choice: str) -> ChoiceLikelihood:
    """By the loss of training on this one row."""
    model = chat.model
    tokens = len(model.tokenizer.encode(choice))
    segments = row_segments(model.tokenizer, [Exchange(prompt, choice)], shown, max_txt_len=100)
    spliced = splice([segments], model.embed_tokens, model.device)
    with torch.no_grad():
        logits = model.logits(spliced)
    loss = target_loss(*target_logits(logits, spliced.targets))
    likeliest = logits[0, -1 - tokens : -1].argmax(dim=-1).tolist()
    return ChoiceLikelihood(
        -loss.item() * tokens, tokens, likeliest == model.tokenizer.encode(choice)
    )


def same(scored: list[ChoiceLikelihood], expected: list[ChoiceLikelihood]) -> None:
    assert [one[1:] for one in scored] == [one[1:] for one in expected]
    numbers = [one.log_probability for one in expected]
    assert [one.log_probability for one in scored] == pytest.approx(numbers, rel=1e-4, abs=1e-4)


def equals_training(chat: Chat, images: list[list[torch.Tensor]]) -> None:
    scored = choice_likelihoods(chat, PROMPTS, images, CHOICES)
    for prompt, shown, choices, found in zip(PROMPTS, images, CHOICES, scored, strict=True):
        same(found, [read_whole(chat, prompt, shown, choice) for choice in choices])
    assert len({one.log_probability for own in scored for one in own}) == sum(map(len, CHOICES))


def test_it_is_the_loss_that_training_would_have(chat: Chat, images: list[list[torch.Tensor]]):
    equals_training(chat, images)


@pytest.mark.parametrize("name", ["llama_2", "qwen2", "gpt_neox", *KINDS])
def test_so_it_is_for_other_language_models(tmp_path: Path, name: str, pictures: list[Path]):
    folder = save_kind(tmp_path, name) if name in KINDS else FAMILIES[name].save(tmp_path)
    chat = load_chat(TINY, chat_options(FAMILIES.get(name, FAMILIES["qwen2"]), folder))
    encoded = chat.encode_images(pictures[:3])
    equals_training(chat, [[encoded[0]], [encoded[1], encoded[2]], []])


def test_neither_order_nor_company_changes_it(chat: Chat, images: list[list[torch.Tensor]]):
    together = choice_likelihoods(chat, PROMPTS, images, CHOICES)
    backwards = choice_likelihoods(
        chat, PROMPTS[::-1], images[::-1], [own[::-1] for own in CHOICES[::-1]]
    )
    for index, prompt in enumerate(PROMPTS):
        (alone,) = choice_likelihoods(chat, [prompt], [images[index]], [CHOICES[index]])
        same(alone, together[index])
        same(backwards[-1 - index][::-1], together[index])


def test_more_choices_than_are_scored_at_once(chat: Chat, images: list[list[torch.Tensor]]):
    words = [f"{first} {second}" for first in "abcdefg" for second in "hijklm"]
    (many,) = choice_likelihoods(chat, PROMPTS[:1], images[:1], [words])
    for index in (0, 31, 32, 41):
        same(many[index : index + 1], [read_whole(chat, PROMPTS[0], images[0], words[index])])


def test_a_prompt_is_read_once(
    chat: Chat, images: list[list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
):
    read: list[tuple[int, ...]] = []
    forward = type(chat.model.llama_model).forward

    def note(self: PreTrainedModel, inputs_embeds: torch.Tensor, **given: object) -> object:
        read.append(tuple(inputs_embeds.shape[:2]))
        return forward(self, inputs_embeds=inputs_embeds, **given)

    monkeypatch.setattr(type(chat.model.llama_model), "forward", note)
    encode = chat.model.tokenizer.encode
    length = sum(map(len, chat.model.prompt_segments(PROMPTS[0], images[0])))
    choices = ["red", "a blue square and a ring", "is", "left of"]
    behind = [len(encode(choice)) - 1 for choice in choices]
    assert 0 in behind
    choice_likelihoods(chat, PROMPTS[:1], images[:1], [choices])
    longer = [count for count in behind if count]
    assert read == [(1, length), (len(longer), max(longer))]
    alone = choices[behind.index(0)]
    choice_likelihoods(chat, PROMPTS[:1], images[:1], [[alone]])
    assert read[2:] == [(1, length)], "a first token needs no more than the prompt"


def test_what_is_generated_is_greedy(chat: Chat, images: list[list[torch.Tensor]]):
    options = replace(chat.options, max_new_tokens=4, do_sample=False, repetition_penalty=1.0)
    (answer,) = chat.generate(PROMPTS[:1], images[:1], "", options)
    words = [answer, "red", "a blue square is left of a ring", answer + " red"]
    (scored,) = choice_likelihoods(chat, PROMPTS[:1], images[:1], [words])
    assert [one.greedy for one in scored] == [True, False, False, False]


def test_what_cannot_be_scored_is_one_line(chat: Chat, images: list[list[torch.Tensor]]):
    with one_line(DataError, "prompt 1 has no choices to score"):
        choice_likelihoods(chat, PROMPTS[:1], images[:1], [[]])
    with one_line(DataError, "prompt 2: the choice '' has no token to score"):
        choice_likelihoods(chat, PROMPTS[:2], images[:2], [["yes"], ["no", ""]])
    assert choice_likelihoods(chat, [], [], []) == []


def test_more_than_there_are_positions_for_is_one_line(tmp_path: Path):
    folder = save_kind(tmp_path, "learned positions")
    chat = load_chat(TINY, chat_options(FAMILIES["qwen2"], folder))
    with one_line(DataError, "prompt 2 and its choice take", "model has 128 positions"):
        choice_likelihoods(chat, ["a", "a"], [[], []], [["b"], ["word " * 60]])


def test_numbers_that_overflow_are_told(tmp_path: Path):
    chat = load_chat(TINY, chat_options(FAMILIES["gpt_neox"], save_gpt_neox(tmp_path)))
    chat.model.llama_model.get_output_embeddings().weight.data[5] = torch.nan
    with one_line(NonFiniteLogitsError, "Inf or NaN"):
        choice_likelihoods(chat, ["a"], [[]], [["b"]])
