"""Tokenizer: text ↔ ids, exactly as the original's slow LLaMA tokenizer.

Only the model holds one. transformers 5's own ``LlamaTokenizer`` treats leading spaces, white space
beside special tokens and decoding differently, so LLaMA folders (``tokenizer.model``) are read with
sentencepiece itself; other language models use their own fast tokenizer.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from minigpt4.errors import CheckpointError, one_line


class Tokenizer(Protocol):
    """What the model needs of a tokenizer; ids are plain integers, never padded.

    ``special`` are the texts that ``encode`` takes for more than text, such as ``</s>``.
    """

    bos_id: int
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
    """

    def __init__(self, model_file: Path) -> None:
        try:
            import sentencepiece

            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except ImportError as error:
            raise CheckpointError(f"{model_file}: cannot be read: {missing_packages()}") from error
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{model_file}: not a sentencepiece model ({error}); copy tokenizer.model again "
                "from the LLaMA or Vicuna folder"
            ) from error
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        self.vocab_size = self._processor.vocab_size()
        for name, token_id in (("bos", self.bos_id), ("eos", self.eos_id)):
            if token_id < 0:
                raise CheckpointError(
                    f"{model_file}: has no {name} token, which the language model needs; copy "
                    "tokenizer.model again from the LLaMA or Vicuna folder"
                )
        self._special = {
            self._processor.id_to_piece(token_id): token_id
            for token_id in (self._processor.unk_id(), self.bos_id, self.eos_id)
        }
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
        # Rows beyond the sentencepiece vocabulary (Vicuna v0's [PAD], 32000) have no text.
        known = [i for i in ids if 0 <= i < self.vocab_size and not (skip_special and i in special)]
        text = ""
        run: list[int] = []
        previous_special = True
        for token_id in known:
            if token_id not in special:
                run.append(token_id)
                previous_special = False
                continue
            # The original puts the space before the run that a special token closes.
            text += ("" if previous_special else " ") + self._processor.decode(run)
            text += self._processor.id_to_piece(token_id)
            run = []
            previous_special = True
        return text + (self._processor.decode(run) if run else "")

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, word start written as ``▁``."""
        if not 0 <= token_id < self.vocab_size:
            return ""
        return str(self._processor.id_to_piece(token_id))


class FastTokenizer:
    """Any tokenizer that transformers can load, for language models other than LLaMA."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            # Without these packages transformers asks for others, which would not help.
            reason = missing_packages() or one_line(error)
            raise CheckpointError(
                f"{folder}: no tokenizer.model, and no other tokenizer loads ({reason})"
            ) from error
        self.eos_id = self._tokenizer.eos_token_id
        bos_id = self._tokenizer.bos_token_id
        self.bos_id = self.eos_id if bos_id is None else bos_id
        self.vocab_size = len(self._tokenizer)
        self.special = tuple(map(str, self._tokenizer.get_added_vocab()))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def piece(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")


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


def load_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer of a language-model folder or hub id."""
    model_file = Path(folder) / "tokenizer.model"
    return SentencePieceTokenizer(model_file) if model_file.is_file() else FastTokenizer(folder)
