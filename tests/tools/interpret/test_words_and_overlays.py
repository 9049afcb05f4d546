"""Nearest words, and overlays over the picture as the model sees it."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.chat import Chat
from minigpt4.tools.interpret import (
    chance_cosines,
    nearest_words,
    overlay,
    picture_seen,
    pixels_seen,
    shown_word,
)
from tests.helpers.other_llms import save_qwen2
from tests.helpers.tiny_models import load_tiny_chat as load


def test_the_row_of_a_word_is_nearest_to_this_word(chat: Chat):
    ids = chat.model.tokenizer.encode("a large red circle")
    rows = 7 * chat.model.embed_tokens(torch.tensor(ids))
    (near,) = nearest_words(chat.model, rows[None])
    assert [words[0].word for words in near] == [" a", " large", " red", " circle"]
    assert [words[0].cosine for words in near] == pytest.approx([1.0] * 4, abs=1e-5)
    assert all(len(words) == 5 for words in near)
    cosines = [[word.cosine for word in words] for words in near]
    assert cosines == [sorted(row, reverse=True) for row in cosines]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_change_nothing(chat: Chat, pictures: list[Path], chunk: int):
    tokens = chat.encode_images(pictures[:2])
    whole = nearest_words(chat.model, tokens, count=3, chunk=10**6)
    parts = nearest_words(chat.model, tokens, count=3, chunk=chunk)
    assert [len(image) for image in whole] == [16, 16]
    for one, other in zip(chain(*whole), chain(*parts), strict=True):
        assert [near.word for near in one] == [near.word for near in other]
        assert [near.cosine for near in one] == pytest.approx([near.cosine for near in other])


def test_special_tokens_are_no_words(chat: Chat):
    tokenizer = chat.model.tokenizer
    rows = chat.model.embed_tokens(torch.tensor([tokenizer.bos_id, tokenizer.eos_id]))
    near = nearest_words(chat.model, rows[None], count=10**6)
    words = {word.word for row in near[0] for word in row}
    assert {" red", "<0x0A>"} <= words
    assert not words & set(tokenizer.special)
    assert len(near[0][0]) == tokenizer.vocab_size - len(tokenizer.special)


def test_bytes_and_rows_without_a_word_in_another_vocabulary(tmp_path: Path):
    chat = load(f"model.llama_model={save_qwen2(tmp_path / 'qwen')}", "chat.template=own")
    rows = chat.model.llama_model.get_input_embeddings().weight
    near = nearest_words(chat.model, rows[None, -8:], count=10**6)[0][0]
    words = [word.word for word in near]
    tokenizer = chat.model.tokenizer
    assert len(words) == tokenizer.vocab_size - len(tokenizer.special) < len(rows) - 8
    assert all(words)
    assert any(word.startswith(" ") and word.strip() for word in words)
    first_of_two = tokenizer.encode("é")[0]
    assert shown_word(tokenizer, first_of_two) == f"<{tokenizer.piece(first_of_two)}>"


def test_chance_is_the_same_every_time_and_draws_from_nobody(chat: Chat, pictures: list[Path]):
    pixels = pixels_seen(chat, pictures[:2])
    state = torch.get_rng_state()
    found = chance_cosines(chat.model, pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == chance_cosines(chat.model, pixels) != chance_cosines(chat.model, pixels, seed=1)
    # 160 dimensions and 640 words: far from 0, and far from a word's own row.
    assert 0.1 < found.random < 0.4
    assert 0.1 < found.untrained < 0.4
    exact = nearest_words(chat.model, load().encode_images(pictures))
    untrained = [words[0].cosine for image in exact for words in image]
    assert found.untrained == pytest.approx(sum(untrained) / len(untrained), abs=0.05)


def changed(picture: Image.Image, shares: torch.Tensor) -> np.ndarray:
    """How much redder each pixel becomes."""
    over, bare = overlay(picture, shares), overlay(picture, torch.full((8, 8), 1 / 64))
    return np.asarray(over, dtype=int)[..., 0] - np.asarray(bare, dtype=int)[..., 0]


def test_color_lies_on_the_patch_and_nowhere_else():
    shares = torch.full((8, 8), 0.01)
    shares[1, 6] = 0.37
    warmer = changed(Image.new("RGB", (160, 160), (90, 90, 90)), shares)
    y, x = np.unravel_index(warmer.argmax(), warmer.shape)
    assert (int(y) // 20, int(x) // 20) == (1, 6)
    assert warmer.max() > 60
    assert not warmer[80:].any()
    assert not warmer[:, :80].any()


def test_what_is_nearly_even_stays_nearly_bare():
    grey = Image.new("RGB", (160, 160), (90, 90, 90))
    slight = torch.full((8, 8), 1.0)
    slight[1, 6] = 1.1
    strong = slight.clone()
    strong[1, 6] = 3
    assert 0 < changed(grey, slight).max() < changed(grey, strong).max() / 4
    nothing = overlay(grey, torch.zeros(8, 8))
    assert len({*nothing.get_flattened_data()}) == 1


def test_the_picture_is_what_the_model_sees(chat: Chat):
    wide = Image.linear_gradient("L").resize((300, 90)).convert("RGB")
    seen = picture_seen(chat, wide)
    assert seen.size == (112, 112)
    expected = np.asarray(wide.resize((112, 112), Image.Resampling.BICUBIC), dtype=int)
    assert abs(np.asarray(seen, dtype=int) - expected).max() <= 1
    assert picture_seen(chat, wide, 224).size == (224, 224)
