"""Pretrain the tiny LLaMA and its tokenizer on text only; it never meets an image or a feature.

Documents talk about *notes*: short keyword lists about a scene. Half of the notes are plain words.
The others are *soft notes*, as many positions as the Q-Former has queries, where one position holds
the sum of a few word embeddings plus noise: still text, but as unordered and blurred as projected
image features are. What is engineered here is listed in ``assets/tiny/README.md``.
"""

import functools
import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from assets.tiny.making.corpus import (
    FACT_WORDS,
    FULL,
    PROMPTS,
    Document,
    Note,
    make_document,
    make_notes,
)
from assets.tiny.making.pretrain_vision import NUM_QUERIES
from assets.tiny.making.pretraining import autocast, optimise, rng_of
from minigpt4.models.tokenizer import SentencePieceTokenizer
from minigpt4.tools.tiny_world.phrases import QUESTION_KINDS, caption, description, questions
from minigpt4.tools.tiny_world.scenes import sample_scene

VOCAB_SIZE = 640
CONTEXT = 512
_NOTE_SCALE = 0.57  # rms of one embedding entry: what the default ``nn.Linear`` init puts out
_SOFT_SHARE = (0.65, 0.4)  # of each round's documents have soft notes
_SECOND_ROUND = 0.3  # of the first one's steps: practice with plain notes, which are learnt later
_SPREAD = 0.3  # how often a soft position also holds one of the scene's own words
_FILLER_WEIGHT = 0.3  # in the loss: of an answer's words that state no fact
_CONTEXT_WEIGHT = 0.05  # and of what is not the model's to say
_BLUR = 1.5  # most noise, and most shift, of a soft row; in units of the embedding's spread
_PADDED_TO = 16  # positions: batches are a multiple of it long
_GROUP = 8  # batches that are drawn, and sorted by length, together


def train_tokenizer(folder: Path, seed: int) -> SentencePieceTokenizer:
    """A LLaMA-style sentencepiece model over the corpus; one word, one piece."""
    rng = random.Random(seed)

    def lines() -> Iterator[str]:
        for _ in range(20000):
            document = make_document(rng)
            yield " ".join([FULL, *(" ".join(note) for note in document.notes)])
            yield document.before + " ".join(context + text for context, text in document.turns)

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # written through a prefix, it would hold the folder's path
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return SentencePieceTokenizer(folder / "tokenizer.model")


def build_llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=4,
            num_attention_heads=5,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-6,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
    )


@dataclass(frozen=True)
class Row:
    """One document as ids; positions in ``soft`` hold a weighted sum of words instead of an id."""

    ids: list[int]
    weights: list[float]  # of each position in the loss; 0 = not learnt
    soft: dict[int, dict[int, float]]


class Batcher:
    """Turns documents into embeddings and targets for one language model."""

    def __init__(self, tokenizer: SentencePieceTokenizer, table: nn.Parameter) -> None:
        self.tokenizer = tokenizer
        self.table = table
        self.cache: dict[str, list[int]] = {}
        self.facts = {self.encode(word)[0] for word in FACT_WORDS}

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text)
        return self.cache[text]

    def plain_note(self, document: Document, rng: random.Random) -> list[int]:
        """Notes as ordinary words with separators, some said twice."""
        notes: list[Note] = document.notes + [(FULL,)] * document.full
        said = [note for note in notes for _ in range(1 if rng.random() < 0.8 else 2)]
        rng.shuffle(said)
        return self.encode(" ; ".join(" ".join(note) for note in said))

    def soft_note(self, document: Document, rng: random.Random) -> list[dict[int, float]]:
        """Notes on ``NUM_QUERIES`` shuffled positions, each a weighted set of words.

        What holds for the whole scene may also lie on any other position. How strongly a
        description in full is asked for is a matter of degree, on all positions: so stage 2 has a
        slope to climb.
        """
        positions = list(document.notes)
        while len(positions) < NUM_QUERIES:
            if rng.random() < 0.25:
                positions.append(())
                continue
            note = rng.choice(document.notes)
            positions.append(tuple(word for word in note if rng.random() < 0.7))
        rng.shuffle(positions)
        scene_words = [word for note in document.notes if len(note) == 1 for word in note]
        mixtures = []
        for words in positions:
            amounts = {word: rng.uniform(0.5, 1.3) / len(words) ** 0.5 for word in words}
            for word in scene_words:
                if word not in words and rng.random() < _SPREAD:
                    amounts[word] = rng.uniform(0.1, 0.8)
            for word in rng.sample(FACT_WORDS, 3):  # a query picks up what does not belong to it
                amounts.setdefault(word, rng.gauss(0, 0.2))
            amounts[FULL] = document.strength
            mixtures.append({self.encode(word)[0]: amount for word, amount in amounts.items()})
        return mixtures

    def row(self, document: Document, soft: bool, rng: random.Random) -> Row:
        ids = [1, *self.encode(document.before)] if document.before else [1]
        mixtures: dict[int, dict[int, float]] = {}
        if soft:
            mixtures = dict(enumerate(self.soft_note(document, rng), start=len(ids)))
            ids = ids + [0] * len(mixtures)
        else:
            ids = ids + self.plain_note(document, rng)
        weights = [0.0] * len(ids)
        for context, text in document.turns:
            asked, told = self.encode(context) if context else [], self.encode(text)
            ids = ids + asked + told
            weights += [_CONTEXT_WEIGHT] * len(asked)
            weights += [1.0 if i in self.facts else _FILLER_WEIGHT for i in told]
        return Row(ids, weights, mixtures)

    def batch(
        self, rows: Sequence[Row], rng: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings ``[B, S, D]``, target ids ``[B, S]``, weights ``[B, S]`` (0 = not learnt)."""
        # Few different lengths: else memory falls into pieces that do not fit the next batch.
        longest = max(len(row.ids) for row in rows)
        width = math.ceil(longest / _PADDED_TO) * _PADDED_TO
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        weights = torch.zeros(len(rows), width)
        for b, row in enumerate(rows):
            ids[b, : len(row.ids)] = torch.tensor(row.ids)
            weights[b, : len(row.ids)] = torch.tensor(row.weights)
        embeds = functional.embedding(ids, self.table)
        soft = [(b, position) for b, row in enumerate(rows) for position in row.soft]
        if soft:
            mixtures = [mixture for row in rows for mixture in row.soft.values()]
            words = [(i, word) for i, mixture in enumerate(mixtures) for word in mixture]
            amounts = [amount for mixture in mixtures for amount in mixture.values()]
            mixture = torch.zeros(len(mixtures), VOCAB_SIZE)
            mixture[tuple(torch.tensor(words).T)] = torch.tensor(amounts)
            # Projected features differ from words: each in its own way, and all of a row alike.
            levels = torch.tensor([[rng.uniform(0, _BLUR), rng.uniform(0, _BLUR)] for _ in rows])
            rows_of = torch.tensor([b for b, _ in soft])
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            width = self.table.shape[1]
            noise = torch.randn(len(soft), width, generator=generator) * levels[rows_of, :1]
            shift = (
                torch.randn(len(rows), width, generator=generator)[rows_of] * levels[rows_of, 1:]
            )
            blurred = mixture @ self.table + self.table.detach().std() * (noise + shift)
            embeds = embeds.index_put(tuple(torch.tensor(soft).T), blurred)
        return embeds, ids, weights


def pretrain_llama(
    folder: Path,
    tokenizer: SentencePieceTokenizer,
    steps: int,
    seed: int,
    save_every: int = 200,
    batch_size: int = 64,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """A trained LLaMA and its text-only ceilings on notes it has not seen.

    Args:
        folder: Where the training keeps its progress.
        tokenizer: Of this language model.
        steps: Of ``batch_size`` documents, in the first of two rounds.
        seed: Of init and documents.
        save_every: Steps between two saves.
        batch_size: Documents in a step.
    """
    torch.manual_seed(seed)
    name = "llama"
    llama = build_llama()
    llama.set_attn_implementation("eager")  # faster than sdpa backward for short bf16 rows on CPU
    batcher = Batcher(tokenizer, llama.get_input_embeddings().weight)

    @functools.lru_cache(maxsize=1)
    def batches(group: int) -> list[list[Row]]:
        """Batches of rows of similar length, so that little is padded."""
        rng = rng_of(seed, name, -1 - group)
        soft_share = _SOFT_SHARE[group * _GROUP >= steps]
        rows = [
            batcher.row(make_document(rng), rng.random() < soft_share, rng)
            for _ in range(_GROUP * batch_size)
        ]
        rows.sort(key=lambda row: len(row.ids))
        sorted_batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(sorted_batches)
        return sorted_batches

    def loss_of(step: int) -> torch.Tensor:
        rows = batches(step // _GROUP)[step % _GROUP]
        embeds, targets, weights = batcher.batch(rows, rng_of(seed, name, step))
        with autocast():
            logits = llama(inputs_embeds=embeds, use_cache=False).logits
        losses = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), reduction="none"
        )
        weight = weights[:, 1:].flatten()
        return (losses * weight).sum() / weight.sum()

    progress = folder / "llama.progress"
    again = int(_SECOND_ROUND * steps)
    optimise(name, llama, llama.model.layers, steps, loss_of, progress, save_every, again)
    llama.eval()
    ceilings = {}
    for soft in (False, True):
        notes = "soft notes" if soft else "plain notes"
        for kind, value in text_ceiling(llama, tokenizer, seed, soft).items():
            ceilings[f"{notes}: {kind}"] = value
    scale_residual_stream(llama)
    return llama, ceilings


@torch.no_grad()
def text_ceiling(
    llama: LlamaForCausalLM, tokenizer: SentencePieceTokenizer, seed: int, soft: bool
) -> dict[str, float]:
    """Share of answers that greedy decoding gets right to the letter, on fresh notes, by kind.

    Teacher forcing shows it: where every next piece is the most likely one, decoding writes them.
    """
    rng = rng_of(seed, "gate", 0)
    batcher = Batcher(tokenizer, llama.get_input_embeddings().weight)
    right: dict[str, list[bool]] = {}
    for _ in range(60):
        documents, kinds = zip(*(_exam(rng) for _ in range(32)), strict=True)
        rows = [batcher.row(document, soft, rng) for document in documents]
        embeds, targets, weights = batcher.batch(rows, rng)
        predicted = llama(inputs_embeds=embeds, use_cache=False).logits[:, :-1].argmax(-1)
        learnt = weights[:, 1:] > _CONTEXT_WEIGHT
        wrong = (predicted != targets[:, 1:]) & learnt
        for kind, row in zip(kinds, wrong, strict=True):
            right.setdefault(kind, []).append(not row.any().item())
    shares = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
    return {"all": sum(shares.values()) / len(shares), **shares}


def _exam(rng: random.Random) -> tuple[Document, str]:
    """A document with one thing to say, and its kind: caption, description or a question's."""
    scene = sample_scene(rng)
    kind = rng.choice(("caption", "description", *QUESTION_KINDS))
    if kind == "caption":
        return Document(make_notes(scene, rng), "", [("", caption(scene) + "\n")]), kind
    full = kind == "description"
    if full:
        prompt, answer = rng.choice(PROMPTS), description(scene)
    else:
        asked = {question.kind: question for question in questions(scene, rng)}
        if kind not in asked:
            return _exam(rng)
        prompt, answer = asked[kind].text, asked[kind].answer
    turn = (f"</Img> {prompt} ###Assistant: ", answer + "###")
    return Document(make_notes(scene, rng), "###Human: <Img>", [turn], full, float(full)), kind


@torch.no_grad()
def scale_residual_stream(llama: LlamaForCausalLM) -> None:
    """Scale what is added to the residual stream so that embeddings match projected features.

    RMSNorm divides by the stream's own size, so the function stays as it was (up to its epsilon);
    the default init of ``llama_proj`` then starts at the embeddings' scale.
    """
    table = llama.get_input_embeddings().weight
    factor = _NOTE_SCALE / table.pow(2).mean().sqrt()
    table.mul_(factor)
    for layer in llama.model.layers:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
