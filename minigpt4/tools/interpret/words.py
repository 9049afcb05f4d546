"""Nearest words: projected image tokens → the closest words of the language model."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.tokenizer import Tokenizer


class NearWord(NamedTuple):
    """A token, with a space before it where it begins a word, and its cosine."""

    word: str
    cosine: float


class ChanceCosines(NamedTuple):
    """Mean cosine to the nearest word without training."""

    random: float  # of random directions
    untrained: float  # of the same pictures through an untrained projection


@torch.no_grad()
def nearest_words(
    model: MiniGPT4, image_tokens: torch.Tensor, count: int = 5, chunk: int = 4096
) -> list[list[list[NearWord]]]:
    """Return the nearest words by cosine, for each image and each of its tokens ``[B, Q, H]``.

    Special tokens and unused rows of the input embedding are left out; ``chunk`` rows are compared
    at a time. Compare the cosines with :func:`chance_cosines`.
    """
    directions = functional.normalize(image_tokens.float().flatten(0, -2), dim=-1)
    ids = word_ids(model)
    best = directions.new_full((len(directions), 0), 0.0)
    found = torch.zeros(best.shape, dtype=torch.long, device=best.device)
    for rows in ids.to(model.device).split(chunk):
        words = functional.normalize(model.embed_tokens(rows).to(directions), dim=-1)
        best = torch.cat([best, directions @ words.T], dim=1)
        found = torch.cat([found, rows.to(found).expand(len(found), -1)], dim=1)
        best, places = best.topk(min(count, best.shape[1]), dim=1)
        found = found.gather(1, places)
    tokenizer = model.tokenizer
    near = [
        [NearWord(shown_word(tokenizer, i), c) for i, c in zip(*row, strict=True)]
        for row in zip(found.tolist(), best.tolist(), strict=True)
    ]
    each = image_tokens.shape[1]
    return [near[start : start + each] for start in range(0, len(near), each)]


@torch.no_grad()
def chance_cosines(
    model: MiniGPT4, pixels: torch.Tensor, seed: int = 0, directions: int = 256
) -> ChanceCosines:
    """Return the control of :func:`nearest_words`, for the pixels ``[B, 3, s, s]`` of the images.

    ``seed`` is that of the random ``directions`` and of the untrained projection.
    """
    with model.autocast(model.device):
        features = model.encode_frozen(pixels.to(model.device)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = torch.randn(1, directions, model.llama_proj.out_features)
        untrained = nn.Linear(model.llama_proj.in_features, model.llama_proj.out_features)

    def mean_nearest(tokens: torch.Tensor) -> float:
        near = nearest_words(model, tokens, count=1)
        cosines = [words[0].cosine for image in near for words in image]
        return sum(cosines) / len(cosines)

    return ChanceCosines(
        mean_nearest(drawn.to(model.device)), mean_nearest(untrained.to(features.device)(features))
    )


def word_ids(model: MiniGPT4) -> torch.Tensor:
    """Return the rows ``[n]`` of the input embedding that are words."""
    tokenizer = model.tokenizer
    special = {i for word in tokenizer.special for i in tokenizer.encode(word)}
    special |= {tokenizer.eos_id, *([] if tokenizer.bos_id is None else [tokenizer.bos_id])}
    rows = model.llama_model.get_input_embeddings().weight.shape[0]
    assert isinstance(rows, int)
    known = [i for i in range(rows) if i not in special and tokenizer.piece(i)]
    return torch.tensor(known, dtype=torch.long)


def shown_word(tokenizer: Tokenizer, token_id: int) -> str:
    """Return a token for display: a space where a word begins, ``<0x0A>`` for a lone byte.

    Parts of a character in a byte-level vocabulary are put in angle brackets.
    """
    piece = tokenizer.piece(token_id)
    if "▁" in piece or piece.startswith("<0x"):
        return piece.replace("▁", " ")
    text = tokenizer.decode([token_id], skip_special=False)
    return f"<{piece}>" if "\ufffd" in text or not text else text
