"""What transformers makes of an exported folder is held against our own model."""

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, Blip2ForConditionalGeneration

from minigpt4.chat import Chat, GenerationOptions, load_chat
from minigpt4.conversation import TEMPLATES, Conversation
from minigpt4.models.llm_input import IMAGE_MARK
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import load_tokenizer
from minigpt4.processors import ImageProcessor
from minigpt4.tools.export.hugging_face import IMAGE_TOKEN, save_hugging_face
from tests.helpers.recorded.model import build_model, one_case
from tests.helpers.repo import ROOT

YAML = "eval_configs/tiny_eval.yaml"
PICTURES = sorted((ROOT / "tests/golden/processors").glob("*_rgb.png"))
PROMPT = "###Human: <Img><ImageHere></Img> Describe this image in detail. ###Assistant: "
ANSWERS = ["a red ring", "two blue circles beside the small green square"]


@pytest.fixture(scope="module")
def chat(projection: Path) -> Chat:
    return load_chat(ROOT / YAML, [f"model.ckpt={projection}"], device="cpu")


def exported_chat(
    folder: Path, small_activations: bool = False, template: str = "vicuna_v0"
) -> Chat:
    """A recorded model with random weights, exported into ``hf`` in a folder."""
    case = one_case(small_activations=small_activations, q_former=True)
    processor = ImageProcessor(case.facts["dims"]["vit"]["img_size"])
    chat = Chat(build_model(case), processor, GenerationOptions(template=template))
    save_hugging_face(chat, case.tokenizer_file, folder / "hf")
    return chat


@cache
def loaded(exported: Path) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(exported)


def placed(prompt: str, count: int) -> str:
    """A prompt of ours as the exported tokenizer wants it."""
    return prompt.replace(IMAGE_MARK, IMAGE_TOKEN * count)


def worst_difference(exported: Path, model: MiniGPT4, prompts: Sequence[str] | None) -> float:
    """Of the logits over real positions; ids and mask are made by the exported tokenizer alone."""
    encoder: Any = model.visual_encoder
    side = encoder.patch_embed.img_size[0]
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    spliced = model.splice_batch(image, model.stage_rows(ANSWERS, prompts))
    tokenizer, theirs = AutoTokenizer.from_pretrained(exported), loaded(exported)
    count = theirs.config.num_query_tokens
    rows = []
    for prompt, answer in zip(prompts or [IMAGE_MARK] * 2, ANSWERS, strict=True):
        ids = tokenizer(placed(prompt, count))["input_ids"]
        rows.append(ids + tokenizer.encode(answer + "\n", add_special_tokens=False))
    batch = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    assert torch.equal(batch["attention_mask"], spliced.attention_mask)
    with torch.no_grad():
        difference = theirs(pixel_values=image, **batch).logits - model.logits(spliced)
    return difference.abs()[spliced.attention_mask.bool()].max().item()


# Logits


def test_logits_of_both_stages(exported: Path, chat: Chat, tmp_path: Path) -> None:
    """Of the embedded default and of random weights."""
    other = exported_chat(tmp_path)
    for prompts in (None, [PROMPT] * 2):
        assert worst_difference(exported, chat.model, prompts) < 1e-3
        assert worst_difference(tmp_path / "hf", other.model, prompts) < 1e-3


def test_the_one_epsilon_shows_where_activations_are_small(tmp_path: Path) -> None:
    """The stated departure and no other: with ours set to 1e-6 too, the logits are equal."""
    other = exported_chat(tmp_path, small_activations=True)
    before = worst_difference(tmp_path / "hf", other.model, None)
    assert other.model.ln_vision is not None
    other.model.ln_vision.eps = 1e-6
    assert worst_difference(tmp_path / "hf", other.model, None) < min(1e-4, before)


def test_frozen_weights_are_written_as_short_as_they_were_read(exported: Path) -> None:
    """The committed towers are fp16; a folder twice their size would hold nothing more."""
    with safe_open(exported / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert dtypes["language_model.lm_head.weight"] == torch.float16
    assert dtypes["vision_model.encoder.layers.0.mlp.fc1.weight"] == torch.float16
    assert dtypes["language_projection.weight"] == torch.float32
    assert {p.dtype for p in loaded(exported).parameters()} == {torch.float32}, "loaded by itself"


def test_the_folder_tells_nothing_of_this_machine(exported: Path) -> None:
    for file in exported.glob("*.json"):
        assert "assets/tiny" not in file.read_text(encoding="utf-8"), file


# Processor and tokenizer


def test_pixels(exported: Path, chat: Chat) -> None:
    """Equal with Pillow; torchvision, transformers' default, rounds otherwise by a level or two."""
    exact = AutoProcessor.from_pretrained(exported, backend="pil")
    default = AutoProcessor.from_pretrained(exported)
    assert PICTURES
    for file in PICTURES:
        image = Image.open(file)
        ours = chat.image_processor(image)
        for processor, allowed in ((exact, 1e-5), (default, 0.03)):
            theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
            assert (theirs - ours).abs().max() <= allowed


@pytest.mark.parametrize("which", ["tests/golden/tokenizer", "assets/tiny/llama"])
def test_ids_and_texts(which: str, exported: Path, tmp_path: Path) -> None:
    folder = exported
    if which.startswith("tests"):
        exported_chat(tmp_path)
        folder = tmp_path / "hf"
    ours, theirs = load_tokenizer(which), AutoTokenizer.from_pretrained(folder)
    cases = json.loads((ROOT / "tests/golden/tokenizer_cases.json").read_text())["encode"]
    texts = [case["text"] for case in cases if "<unk>" not in case["text"]]
    draw = random.Random(0)
    letters = [*" abcdeftu<>/#:\n\t.,é你😀▁$", "</s>", "<s>", "###"]
    texts += ["".join(draw.choices(letters, k=draw.randrange(15))) for _ in range(2000)]
    for text in texts:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs(text)["input_ids"] == [ours.bos_id, *ids], text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
    assert len(theirs) == ours.vocab_size


def test_ids_of_a_prompt_with_an_image(exported: Path, chat: Chat) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    image = torch.zeros(16, 160)
    first, _, last = chat.model.prompt_segments(PROMPT, [image])
    assert tokenizer(placed(PROMPT, 16))["input_ids"] == [*first, *[0] * 16, *last]
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) == loaded(exported).config.image_token_index


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_chat_template_is_the_conversation(name: str, tmp_path: Path) -> None:
    exported_chat(tmp_path, template=name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    conversation = Conversation(TEMPLATES[name])
    conversation.add_image()
    conversation.add_image()
    conversation.ask('What\'s "this"?')
    conversation.answer("two\nrings")
    conversation.ask("and\\that ")
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": 'What\'s "this"?'}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "two\nrings"},
        {"role": "user", "content": "and\\that "},
    ]
    expected = "<s>" + placed(conversation.prompt(), 8)
    settings = {"add_generation_prompt": True}
    assert tokenizer.apply_chat_template(messages, tokenize=False, **settings) == expected
    ids = tokenizer.apply_chat_template(messages, **settings)["input_ids"]
    assert ids == tokenizer.encode(expected, add_special_tokens=False)


def test_the_exported_model_gives_our_answer(exported: Path, chat: Chat) -> None:
    model, processor = loaded(exported), AutoProcessor.from_pretrained(exported, backend="pil")
    image = Image.open(PICTURES[0])
    question = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(
        **processor(images=image, return_tensors="pt"),
        **text,
        generation_config=model.generation_config,
        tokenizer=processor.tokenizer,
    )[0, text["input_ids"].shape[1] :]
    answer = processor.tokenizer.decode(ids, skip_special_tokens=True).split("###")[0].strip()
    assert answer == chat.ask("What is this?", [image])


# Writing


def test_what_a_killed_export_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".hf.writing").mkdir()
    (tmp_path / ".hf.writing" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (tmp_path / "hf").mkdir()
    exported_chat(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == 1
