"""Tokenizer: text ↔ ids, exactly as the original's slow LLaMA tokenizer.

transformers 5's own ``LlamaTokenizer`` treats leading spaces, white space beside special tokens and
decoding differently, so LLaMA folders (``tokenizer.model``) are read with sentencepiece itself;
other language models use their own fast tokenizer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import sentencepiece

from minigpt4.errors import CheckpointError, ConfigError, one_line

Bos = Literal["auto", "on", "off"]
_COPY = "copy tokenizer.model again from the LLaMA or Vicuna folder"


class Tokenizer(Protocol):
    """What the model needs of a tokenizer; ids are plain integers, never padded.

    ``bos_id`` begins every row, unless it is None. ``special`` are the texts that ``encode`` does
    not split, such as ``</s>``.
    """

    bos_id: int | None
    eos_id: int
    vocab_size: int
    special: tuple[str, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def piece(self, token_id: int) -> str: ...


class SentencePieceTokenizer:
    """The LLaMA tokenizer over a ``tokenizer.model`` file, with words that were ``added`` to it.

    ``encode`` splits at special tokens and encodes each part on its own, white space kept; no bos
    is added. ``decode`` writes one space before a run of text that a special token closes.
    Source: ``tests/golden/tokenizer_cases.json``.
    """

    bos_id: int | None

    def __init__(self, model_file: Path, added: Mapping[str, int] | None = None) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (OSError, RuntimeError) as error:
            text = f"{model_file}: not a sentencepiece model ({one_line(error)}); {_COPY}"
            raise CheckpointError(text) from error
        ids = {"bos": self._processor.bos_id(), "eos": self._processor.eos_id()}
        for name, token_id in ids.items():
            if token_id < 0:
                raise CheckpointError(f"{model_file}: has no {name} token; {_COPY}")
        self.bos_id, self.eos_id = ids.values()
        self.vocab_size = self._processor.vocab_size()
        own = (self._processor.unk_id(), *ids.values())
        self._words = {token_id: self._processor.id_to_piece(token_id) for token_id in own}
        self._words |= {i: word for word, i in (added or {}).items() if i >= self.vocab_size}
        self._ids = {word: token_id for token_id, word in self._words.items()}
        self.special = tuple(self._ids)
        self._split = re.compile("(" + "|".join(map(re.escape, self._ids)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        text, run = "", list[int]()
        for token_id in ids:
            if token_id not in self._words:
                run += [token_id] if 0 <= token_id < self.vocab_size else []
            elif not skip_special:
                # The original puts the space before the run that a special token closes.
                text += (" " + self._processor.decode(run) if run else "") + self._words[token_id]
                run = []
        return text + (self._processor.decode(run) if run else "")

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, word start written as ``▁``; empty for an unknown id."""
        if 0 <= token_id < self.vocab_size:
            return str(self._processor.id_to_piece(token_id))
        return self._words.get(token_id, "")


class FastTokenizer:
    """Any tokenizer that transformers can load, for language models other than LLaMA.

    A row begins with its bos where the tokenizer itself puts one in front of a text.
    """

    bos_id: int | None

    def __init__(self, folder: str, bos: Bos = "auto") -> None:
        self._tokenizer = load_auto_tokenizer(folder)
        if self._tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"{folder}: its tokenizer has no eos token, which ends an answer; name one in "
                "tokenizer_config.json"
            )
        self.eos_id = int(self._tokenizer.eos_token_id)
        self.bos_id = self._tokenizer.bos_token_id
        if bos == "on" and self.bos_id is None:
            raise ConfigError(f"model.bos: on, but {folder} has no bos token; set auto or off")
        if bos != "on" and self._tokenizer.encode("a")[:1] != [self.bos_id]:
            self.bos_id = None
        self.vocab_size = len(self._tokenizer)
        self.special = special_words(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")


def load_auto_tokenizer(folder: str) -> Any:
    """Return the tokenizer that transformers loads, or raise a ``CheckpointError``."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        text = f"no tokenizer.model, and no other tokenizer loads ({one_line(error)})"
        raise CheckpointError(f"{folder}: {text}") from error


def special_words(tokenizer: Any) -> tuple[str, ...]:
    """Words that a tokenizer of transformers never splits, without GPT-NeoX's runs of spaces."""
    return tuple(word for word in map(str, tokenizer.get_added_vocab()) if word.strip())


def load_tokenizer(folder: str, bos: Bos = "auto") -> Tokenizer:
    """Return the tokenizer of a language-model folder or hub id.

    ``bos`` says whether rows begin with it; ``auto``: LLaMA's do, as in the original, others where
    their tokenizer puts one in front of a text. A tokenizer that cannot be read, or lacks the bos,
    is a ``MiniGPT4Error``.
    """
    tokenizer: Tokenizer
    if model_file := sentencepiece_file(Path(folder)):
        tokenizer = SentencePieceTokenizer(model_file, _added_words(Path(folder)))
    else:
        tokenizer = FastTokenizer(folder, bos)
    if bos == "off":
        tokenizer.bos_id = None
    return tokenizer


def sentencepiece_file(folder: Path) -> Path | None:
    """The ``tokenizer.model`` to read; models other than LLaMA prefer a ``tokenizer.json``."""
    is_llama = _read(folder / "config.json").get("model_type", "llama") == "llama"
    model_file, newer = folder / "tokenizer.model", folder / "tokenizer.json"
    return model_file if model_file.is_file() and (is_llama or not newer.is_file()) else None


def _added_words(folder: Path) -> dict[str, int]:
    """Words that somebody added to a LLaMA, such as ``<|im_end|>``, where it has rows for them."""
    words = _read(folder / "added_tokens.json")
    for token_id, entry in _read(folder / "tokenizer_config.json", "added_tokens_decoder").items():
        if isinstance(entry, dict) and token_id.isdecimal():
            words[str(entry.get("content"))] = int(token_id)
    rows = _read(folder / "config.json").get("vocab_size")
    if not isinstance(rows, int):
        return {}
    return {word: i for word, i in words.items() if word and isinstance(i, int) and i < rows}


def _read(file: Path, key: str | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, or the one under its ``key``; empty without one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        content = content if key is None else content[key]
    except (OSError, ValueError, TypeError, LookupError):
        return {}
    return content if isinstance(content, dict) else {}
