"""Tokenizer: text ↔ ids, exactly as the original's slow LLaMA tokenizer.

Only the model holds one. transformers 5's own ``LlamaTokenizer`` treats leading spaces, white space
beside special tokens and decoding differently, so LLaMA folders (``tokenizer.model``) are read with
sentencepiece itself; other language models use their own fast tokenizer.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from minigpt4.errors import CheckpointError, ConfigError, one_line

Bos = Literal["auto", "on", "off"]


class Tokenizer(Protocol):
    """What the model needs of a tokenizer; ids are plain integers, never padded.

    ``bos_id`` begins every row; None: nothing does. ``special`` are the texts that ``encode`` takes
    for more than text, such as ``</s>``.
    """

    @property
    def bos_id(self) -> int | None: ...

    eos_id: int
    vocab_size: int
    special: tuple[str, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...

    def piece(self, token_id: int) -> str: ...


class SentencePieceTokenizer:
    """The LLaMA tokenizer over a ``tokenizer.model`` file.

    ``encode`` splits at special tokens and encodes each part on its own, white space kept; no bos
    is added. ``decode`` writes one space before a run of text that a special token closes.
    Source: ``tests/golden/tokenizer_cases.json``.

    Args:
        model_file: The vocabulary.
        added: Special words and their ids; those beyond the vocabulary count.
    """

    bos_id: int | None

    def __init__(self, model_file: Path, added: Mapping[str, int] | None = None) -> None:
        try:
            import sentencepiece

            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (ImportError, OSError, RuntimeError) as error:
            raise _unreadable(model_file, error) from error
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        if bos < 0 or eos < 0:
            raise _without_end(model_file, "bos" if bos < 0 else "eos")
        self.bos_id, self.eos_id = bos, eos
        self.vocab_size = self._processor.vocab_size()
        own = (self._processor.unk_id(), bos, eos)
        self._special = {self._processor.id_to_piece(token_id): token_id for token_id in own}
        beyond = {word: i for word, i in (added or {}).items() if i >= self.vocab_size}
        self._added = {token_id: word for word, token_id in beyond.items()}
        self._special |= beyond
        self.special = tuple(self._special)
        self._split = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        special = set(self._special.values())
        # Rows that no word stands for have no text.
        known = [i for i in ids if self.piece(i) and not (skip_special and i in special)]
        text, run = "", list[int]()
        for token_id in known:
            if token_id not in special:
                run.append(token_id)
                continue
            # The original puts the space before the run that a special token closes.
            text += (" " + self._processor.decode(run) if run else "") + self.piece(token_id)
            run = []
        return text + (self._processor.decode(run) if run else "")

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, word start written as ``▁``."""
        if not 0 <= token_id < self.vocab_size:
            return self._added.get(token_id, "")
        return str(self._processor.id_to_piece(token_id))


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


def _unreadable(model_file: Path, error: Exception) -> CheckpointError:
    if isinstance(error, ImportError):
        return CheckpointError(f"{model_file}: cannot be read: {missing_packages()}")
    return CheckpointError(
        f"{model_file}: not a sentencepiece model ({error}); copy tokenizer.model again "
        "from the LLaMA or Vicuna folder"
    )


def _without_end(model_file: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{model_file}: has no {name} token, which the language model needs; copy "
        "tokenizer.model again from the LLaMA or Vicuna folder"
    )


def missing_packages() -> str:
    """What an environment lacks to read sentencepiece tokenizers; empty when it lacks nothing."""
    needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    lacking = [name for name, module in needed.items() if not _is_installed(module)]
    return f"missing packages; pip install {' '.join(lacking)}" if lacking else ""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # the parent is missing; a module put to None
        return False


def load_auto_tokenizer(folder: str) -> Any:
    """The tokenizer that transformers makes of a language-model folder or hub id.

    Raises:
        CheckpointError: when there is none that loads.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        # Without these packages transformers asks for others, which would not help.
        reason = missing_packages() or one_line(error)
        raise CheckpointError(
            f"{folder}: no tokenizer.model, and no other tokenizer loads ({reason})"
        ) from error


def special_words(tokenizer: Any) -> tuple[str, ...]:
    """Words that a tokenizer of transformers never splits; GPT-NeoX's runs of spaces are none."""
    return tuple(word for word in map(str, tokenizer.get_added_vocab()) if word.strip())


def load_tokenizer(folder: str, bos: Bos = "auto") -> Tokenizer:
    """Return the tokenizer of a language-model folder or hub id.

    ``bos`` says whether a row begins with it; ``auto``: of LLaMA as in the original, of others
    where their tokenizer puts one in front of a text.

    Raises:
        CheckpointError: when none can be read.
        ConfigError: when there is no bos to begin with.
    """
    model_file = sentencepiece_file(Path(folder))
    if model_file is None:
        tokenizer: SentencePieceTokenizer | FastTokenizer = FastTokenizer(folder, bos)
    else:
        tokenizer = SentencePieceTokenizer(model_file, _added_words(Path(folder)))
    if bos == "off":
        tokenizer.bos_id = None
    return tokenizer


def sentencepiece_file(folder: Path) -> Path | None:
    """The ``tokenizer.model`` that is read; other models than LLaMA may have something newer."""
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


def _read(file: Path, *keys: str) -> dict[str, Any]:
    """Return a set of keys in a json file; empty where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}
