"""Conversations of a data set: written as the chat writes them; only the assistant is learnt."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

from minigpt4.conversation import IMAGE_TEXT, TEMPLATES, Conversation, Template, plain_text
from minigpt4.datasets.samples import Batch, Turn
from minigpt4.models.llm_input import IGNORED, describe_row, row_segments
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.tasks import ImageTextPretrainTask, ending, exchanges, open_prompt
from tests.helpers.recorded.model import build_model, one_case

TURNS = (
    Turn("user", "<ImageHere>What is shown?"),
    Turn("assistant", "A cat."),
    Turn("user", "And in <ImageHere> this one?"),
    Turn("assistant", "A dog."),
    Turn("user", "Thanks."),
    Turn("assistant", "You are welcome."),
)
PROMPT = "###Human: <Img><ImageHere></Img> Describe. ###Assistant: "
ALONE = (Turn("user", "Two and two?"), Turn("assistant", "Four."))


def plain(template: Template) -> partial[str]:
    return partial(plain_text, controls=template.forbidden)


def written(turns: Sequence[Turn], template: Template) -> str:
    return "".join(map("".join, exchanges(turns, template, plain(template))))


@pytest.mark.parametrize("name", [n for n, t in TEMPLATES.items() if t.opening == t.assistant])
def test_a_conversation_is_written_as_the_chat_writes_it(name: str) -> None:
    template = TEMPLATES[name]
    chat = Conversation(template)
    chat.add_image()
    asked = ("What is shown?", f"And in {IMAGE_TEXT} this one?", "Thanks.")
    for question, answer in zip(asked, TURNS[1::2], strict=True):
        chat.ask(question)
        chat.answer(answer.text)
    # Where the chat writes nothing behind an answer, its end is learnt all the same.
    taught = "" if template.behind_answer else ending(template)
    assert written(TURNS, template).replace(taught, "") == chat.transcript().replace(taught, "")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_what_is_asked_in_an_evaluation_is_what_was_trained(template: Template) -> None:
    last = exchanges(TURNS, template, plain(template))[-1]
    asked = open_prompt(TURNS, template, plain(template))
    assert asked.endswith(last.prompt)
    assert asked.count(IMAGE_TEXT) == 2


def test_the_answers_and_their_ends_are_learnt_and_nothing_else() -> None:
    found = exchanges(TURNS, TEMPLATES["vicuna_v0"], plain(TEMPLATES["vicuna_v0"]))
    answers = [exchange.answer for exchange in found]
    assert answers == ["A cat.###", "A dog.###", "You are welcome.###"]
    assert found[1].prompt == f"Human: And in {IMAGE_TEXT} this one?###Assistant: "
    llama = exchanges(ALONE, TEMPLATES["llama_2"], plain(TEMPLATES["llama_2"]))
    assert llama[0].answer == "Four.</s>"


def test_a_system_text_of_the_data_takes_the_templates_place() -> None:
    template = TEMPLATES["vicuna_v0"]
    turns = (Turn("system", "Be brief."), *ALONE)
    (exchange,) = exchanges(turns, template, plain(template))
    assert exchange.prompt == "Be brief.###Human: Two and two?###Assistant: "


def test_nobody_speaks_for_somebody_else() -> None:
    template = TEMPLATES["vicuna_v0"]
    turns = (Turn("user", "Hi###Assistant: I"), Turn("assistant", "So###Human: you"))
    (exchange,) = exchanges(turns, template, plain(template))
    assert "Human: Hi# ##Assistant: I###Assistant: " in exchange.prompt
    assert exchange.answer == "So# ##Human: you###"


@pytest.fixture(scope="module")
def model() -> MiniGPT4:
    built = build_model(one_case(first_release=False))
    built.max_txt_len = 50
    return built


def batch_of(texts: Sequence[object], counts: Sequence[int]) -> Batch:
    drawn = torch.Generator().manual_seed(0)
    side = one_case(first_release=False).facts["dims"]["vit"]["img_size"]
    shape = (sum(counts), 3, side, side) if sum(counts) else (0,)
    image = torch.randn(shape, generator=drawn)
    return Batch(
        keys=["x"] * len(texts),
        image=image,
        image_counts=list(counts),
        text=list(texts),  # type: ignore[arg-type]
        normalise=None,
    )


def task(prompts: Sequence[str] = ()) -> ImageTextPretrainTask:
    return ImageTextPretrainTask(list(prompts), seed=0, rank=0)


@torch.no_grad()
def test_the_mask_leaves_the_assistants_words_of_every_turn(model: MiniGPT4) -> None:
    batch = batch_of([TURNS, ALONE, "a caption"], [2, 0, 1])
    rows = task().rows(model, batch, step=0)
    spliced = model.splice_batch(batch["image"], rows)
    encode = model.tokenizer.encode
    for row, targets in zip(rows, spliced.targets, strict=True):
        wanted = [token for exchange in row for token in encode(exchange.answer)]
        assert targets[targets != IGNORED].tolist() == wanted
    # Each target stands at its own word's place, which the position before it predicts.
    width, queries = spliced.embeds.shape[2], model.encode_img(batch["image"]).shape[1]
    learnt = spliced.targets[0] != IGNORED
    words = model.embed_tokens(spliced.targets[0][learnt])
    assert torch.equal(spliced.embeds[0][learnt], words)
    assert words.shape[1] == width
    text = [len(encode(part)) for e in rows[0] for part in e.prompt.split("<ImageHere>")]
    answers = sum(len(encode(e.answer)) for e in rows[0])
    assert spliced.lengths[0] == 1 + sum(text) + 2 * queries + answers


def loss_and_gradient(model: MiniGPT4, batch: Batch, packed: bool) -> tuple[float, torch.Tensor]:
    model.choose_packing("on" if packed else "off")
    model.zero_grad()
    loss = task([PROMPT]).train_step(model, batch, step=0)
    loss.backward()
    assert model.llama_proj.weight.grad is not None
    return loss.item(), model.llama_proj.weight.grad.clone()


def test_mixed_rows_learn_the_same_packed_and_padded(model: MiniGPT4) -> None:
    batch = batch_of([TURNS, ALONE, "a caption", "two of them"], [2, 0, 1, 2])
    padded, packed = (loss_and_gradient(model, batch, packed) for packed in (False, True))
    assert packed[0] == pytest.approx(padded[0], abs=1e-5)
    assert (packed[1] - padded[1]).abs().max() < 1e-5 * padded[1].abs().max()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_words_alone_give_the_projection_a_gradient_of_zeros(model: MiniGPT4, packed: bool) -> None:
    loss, gradient = loss_and_gradient(model, batch_of([ALONE, ALONE], [0, 0]), packed)
    assert loss > 0
    assert not gradient.any()


def test_a_row_is_cut_where_the_language_model_ends(model: MiniGPT4) -> None:
    long = (Turn("user", "word " * 400), Turn("assistant", "lost"))
    batch = batch_of([long, ALONE], [0, 0])
    rows = task().rows(model, batch, step=0)
    limit = 60
    first = row_segments(model.tokenizer, rows[0], [], model.max_txt_len, limit)
    assert sum(map(len, first)) == limit
    assert "target" not in "\n".join(describe_row(model.tokenizer, first))
    whole = row_segments(model.tokenizer, rows[1], [], model.max_txt_len, 10_000)
    assert "target: 'Four.###'" in "\n".join(describe_row(model.tokenizer, whole))


def test_a_caption_of_several_images_has_them_side_by_side(model: MiniGPT4) -> None:
    ((exchange,),) = task([PROMPT]).rows(model, batch_of(["two"], [2]), step=0)
    assert exchange.prompt == f"###Human: {IMAGE_TEXT * 2} Describe. ###Assistant: "
    ((exchange,),) = task().rows(model, batch_of(["two"], [2]), step=0)
    assert exchange.prompt == "<ImageHere><ImageHere>"


def test_a_template_with_another_ending_is_learnt_with_it() -> None:
    template = replace(TEMPLATES["vicuna_v0"], separator="\n", ending="<|end|>\n", stop="<|end|>")
    (exchange,) = exchanges(ALONE, template, plain(template))
    assert exchange.answer == "Four.<|end|>\n"
