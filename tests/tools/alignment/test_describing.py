"""Drafts: the paper's words and rules, the same whatever the batch and wherever it was cut."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigpt4.chat import Chat, GenerationOptions, load_chat
from minigpt4.conversation import TEMPLATES
from minigpt4.datasets.images import load_image
from minigpt4.tools.alignment.describing import (
    ENOUGH,
    QUESTION,
    Describing,
    describe_batch,
    paper_prompt,
    write_drafts,
)  # fmt: skip
from minigpt4.tools.alignment.pictures import Picture, find_pictures
from minigpt4.tools.alignment.work_folder import Journal

SMALL = Describing(num_beams=2, max_new_tokens=16, batch_size=4)


@pytest.fixture(scope="module")
def chat(projection: Path) -> Chat:
    return load_chat("eval_configs/tiny_eval.yaml", [f"model.ckpt={projection}"], device="cpu")


@pytest.fixture
def pictures(scenes: Path) -> list[Picture]:
    return find_pictures(scenes / "cc_sbu_align" / "image")[:7]


def pixels_of(chat: Chat, pictures: list[Picture]) -> list[torch.Tensor]:
    return [chat.image_processor(load_image(picture.path)) for picture in pictures]


def test_the_prompt_is_the_papers_to_the_letter():
    question = "Describe this image in detail. Give as many details as possible. "
    question += "Say everything you see."
    first = f"###Human: <Img><ImageHere></Img> {question} ###Assistant:"
    for name in ("vicuna_v0", "vicuna_v0_first_release"):
        assert paper_prompt(TEMPLATES[name]) == first
        again = paper_prompt(TEMPLATES[name], "A dog.")
        assert again == f"{first} A dog. ###Human: Continue ###Assistant:"


def test_another_template_says_the_same_words():
    template = TEMPLATES["llama_2"]
    first = paper_prompt(template)
    assert first.endswith(f"[INST] <Img><ImageHere></Img> {QUESTION} [/INST] ")
    again = paper_prompt(template, "A dog.")
    assert again.startswith(first + "A dog.")
    assert again.endswith("[INST] Continue [/INST] ")


def test_generation_is_the_papers():
    made = Describing().options(GenerationOptions(template="llama_2", temperature=0.3, seed=5))
    assert (made.num_beams, made.max_new_tokens, made.do_sample) == (5, 200, False)
    assert (made.repetition_penalty, made.length_penalty, made.seed) == (1.0, 1.0, None)
    assert made.template == "llama_2"


def test_a_short_answer_is_continued_and_a_long_one_is_not(chat: Chat, pictures: list[Picture]):
    options = SMALL.options(chat.options)
    pixels = pixels_of(chat, pictures)
    assert all(len(answers) == 2 for answers in describe_batch(chat, options, pixels))
    # Of this template no word but eos ends an answer: it is as long as it may be.
    endless = Describing(num_beams=1, max_new_tokens=120)
    before = chat.options
    chat.options = GenerationOptions(template="llama_2", do_sample=False)
    try:
        told = describe_batch(chat, endless.options(chat.options), pixels)
    finally:
        chat.options = before
    tokens = [len(chat.model.tokenizer.encode(answers[0])) for answers in told]
    assert max(tokens) > ENOUGH
    assert [len(answers) for answers in told] == [1 if n > ENOUGH else 2 for n in tokens]


def test_the_rest_is_asked_for_behind_what_was_said(chat: Chat, pictures: list[Picture]):
    options = SMALL.options(chat.options)
    (pixels,) = pixels_of(chat, pictures[:1])
    ((first, rest),) = describe_batch(chat, options, [pixels])
    image = chat.encode_images([pictures[0].path])
    prompt = paper_prompt(chat.template, first.replace("</Img>", "< /Img>"))
    assert chat.generate([prompt], [[*image]], "###", options) == [rest]


def test_no_batch_size_changes_a_draft_and_no_cut_does(
    chat: Chat, pictures: list[Picture], tmp_path: Path
):
    (tmp_path / "text.jpg").write_text("no picture")
    given = [*pictures, Picture("7", "text.jpg", tmp_path / "text.jpg"), *pictures[:1]]
    drafts = {}
    for batch_size in (1, 4, 16):
        path = tmp_path / f"{batch_size}.jsonl"
        write_drafts(chat, replace(SMALL, batch_size=batch_size), given, Journal(path))
        drafts[batch_size] = path.read_bytes()
    assert len(set(drafts.values())) == 1
    whole = drafts[4]
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["image"] for row in rows] == [picture.name for picture in given]
    assert "unknown format" in rows[7]["error"]
    assert rows[0] == {**rows[8], "image_id": "0"}
    assert rows[0]["draft"] == " ".join(filter(None, rows[0]["answers"]))
    lines = whole.splitlines(keepends=True)
    for kept in (0, 3, 4, 8):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        write_drafts(chat, SMALL, given, Journal(cut))
        assert cut.read_bytes() == whole
