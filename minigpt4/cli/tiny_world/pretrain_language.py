"""Pretrain the tiny LLaMA and its tokenizer on text only; it never meets an image or a feature.

Documents talk about *notes*: short keyword lists about a scene. Half of the notes are plain words.
The others are *soft notes*, as many positions as the Q-Former has queries, where one position holds
the sum of a few word embeddings plus noise: still text, but as unordered and blurred as projected
image features are. What is engineered here is listed in ``assets/tiny/README.md``.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.cli.tiny_world.corpus import FULL, PROMPTS, Document, Note, make_document, make_notes
from minigpt4.cli.tiny_world.phrases import caption, description, questions
from minigpt4.cli.tiny_world.pretrain_vision import NUM_QUERIES, autocast, optimise
from minigpt4.cli.tiny_world.scenes import sample_scene
from minigpt4.models.tokenizer import SentencePieceTokenizer

VOCAB_SIZE = 640
CONTEXT = 512
_NOTE_SCALE = 0.57  # rms of one embedding entry: what the default ``nn.Linear`` init puts out

logger = logging.getLogger(__name__)


def train_tokenizer(folder: Path, seed: int) -> SentencePieceTokenizer:
    """A LLaMA-style sentencepiece model over the corpus; one word, one piece."""
    rng = random.Random(seed)

    def lines() -> Iterator[str]:
        for _ in range(20000):
            document = make_document(rng)
            yield " ".join(" ".join(note) for note in document.notes)
            yield document.before + " ".join(context + text for context, text in document.turns)

    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(),
        model_prefix=str(folder / "tokenizer"),
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
    (folder / "tokenizer.vocab").unlink()
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

    def __init__(self, tokenizer: SentencePieceTokenizer, table: nn.Parameter, seed: int) -> None:
        self.tokenizer = tokenizer
        self.table = table
        self.rng = random.Random(seed)
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tokenizer.encode(text)
        return self.cache[text]

    def plain_note(self, notes: list[Note]) -> list[int]:
        """Notes as ordinary words with separators, some said twice."""
        said = [note for note in notes for _ in range(1 if self.rng.random() < 0.8 else 2)]
        return self.encode(" ; ".join(" ".join(note) for note in said))

    def soft_note(self, notes: list[Note]) -> list[dict[int, float]]:
        """Notes on ``NUM_QUERIES`` shuffled positions, each a weighted set of words."""
        rng = self.rng
        positions = list(notes)
        while len(positions) < NUM_QUERIES:
            if rng.random() < 0.25:
                positions.append(())
                continue
            positions.append(tuple(word for word in rng.choice(notes) if rng.random() < 0.7))
        rng.shuffle(positions)
        return [
            {self.encode(w)[0]: rng.uniform(0.5, 1.3) / len(words) ** 0.5 for w in words}
            for words in positions
        ]

    def row(self, document: Document, soft_share: float) -> Row:
        ids = [1, *self.encode(document.before)] if document.before else [1]
        soft: dict[int, dict[int, float]] = {}
        if self.rng.random() < soft_share:
            mixtures = self.soft_note(document.notes)
            soft = {len(ids) + index: mixture for index, mixture in enumerate(mixtures)}
            ids = ids + [0] * len(mixtures)
        else:
            ids = ids + self.plain_note(document.notes)
        weights = [0.0] * len(ids)
        for context, text in document.turns:
            for part, weight in ((context, 0.1), (text, 1.0)):
                more = self.encode(part) if part else []
                ids = ids + more
                weights += [weight] * len(more)
        return Row(ids, weights, soft)

    def batch(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings ``[B, S, D]``, target ids ``[B, S]``, weights ``[B, S]`` (0 = not learnt)."""
        pad = nn.utils.rnn.pad_sequence
        ids = pad([torch.tensor(row.ids) for row in rows], batch_first=True)
        weights = pad([torch.tensor(row.weights) for row in rows], batch_first=True)
        embeds = functional.embedding(ids, self.table)
        where = [(b, position) for b, row in enumerate(rows) for position in row.soft]
        if where:
            mixture = torch.zeros(len(where), VOCAB_SIZE)
            level = torch.zeros(len(where), 1)
            index = 0
            for row in rows:
                row_noise = self.rng.uniform(0, 0.6)
                for words in row.soft.values():
                    level[index] = row_noise
                    for token_id, weight in words.items():
                        mixture[index, token_id] = weight
                    index += 1
            noise = torch.randn(len(where), self.table.shape[1]) * level * self.table.detach().std()
            places = tuple(torch.tensor(where).T)
            embeds = embeds.index_put(places, mixture @ self.table + noise)
        return embeds, ids, weights


def pretrain_llama(
    tokenizer: SentencePieceTokenizer, steps: int, seed: int, batch_size: int = 64
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """A trained LLaMA and its text-only ceilings on notes it has not seen, by kind."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    llama = build_llama()
    llama.set_attn_implementation("eager")  # faster than sdpa backward for short bf16 rows on CPU
    batcher = Batcher(tokenizer, llama.get_input_embeddings().weight, seed + 1)
    waiting: list[list[Row]] = []  # batches of rows of similar length: little padding

    def loss_of() -> torch.Tensor:
        if not waiting:
            rows = [batcher.row(make_document(rng), 0.65) for _ in range(8 * batch_size)]
            rows.sort(key=lambda row: len(row.ids))
            waiting.extend(rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
            rng.shuffle(waiting)
        embeds, targets, weights = batcher.batch(waiting.pop())
        with autocast():
            logits = llama(inputs_embeds=embeds, use_cache=False).logits
        losses = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), reduction="none"
        )
        weight = weights[:, 1:].flatten()
        return (losses * weight).sum() / weight.sum()

    optimise("llama", list(llama.parameters()), steps, 2e-3, loss_of)
    llama.eval()
    ceilings = text_ceiling(llama, tokenizer, seed + 2)
    scale_residual_stream(llama)
    return llama, ceilings


@torch.no_grad()
def text_ceiling(
    llama: LlamaForCausalLM, tokenizer: SentencePieceTokenizer, seed: int, soft_share: float = 0.0
) -> dict[str, float]:
    """Share of exact greedy predictions (teacher forced), by kind, on fresh notes."""
    rng = random.Random(seed)
    batcher = Batcher(tokenizer, llama.get_input_embeddings().weight, seed)
    right: dict[str, list[bool]] = {}
    for _ in range(40):
        documents, kinds = [], []
        for _ in range(32):
            scene = sample_scene(rng)
            if rng.random() < 0.3:
                notes = make_notes(scene, None, rng)
                documents.append(Document(notes, "", [("", caption(scene) + "\n")]))
                kinds.append("caption")
                continue
            if rng.random() < 0.3:
                notes, kind = make_notes(scene, FULL, rng), "description"
                prompt, answer = rng.choice(PROMPTS), description(scene)
            else:
                question = rng.choice(questions(scene, rng))
                notes, kind = make_notes(scene, None, rng), question.kind
                prompt, answer = question.text, question.answer
            turn = (f"</Img> {prompt} ###Assistant: ", answer + "###")
            documents.append(Document(notes, "###Human: <Img>", [turn]))
            kinds.append(kind)
        embeds, targets, weights = batcher.batch([batcher.row(d, soft_share) for d in documents])
        predicted = llama(inputs_embeds=embeds, use_cache=False).logits[:, :-1].argmax(-1)
        learnt = weights[:, 1:] == 1.0
        wrong = (predicted != targets[:, 1:]) & learnt
        for kind, row in zip(kinds, wrong, strict=True):
            right.setdefault(kind, []).append(not row.any().item())
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}


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
