import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.tokenizer import (
    Bos,
    FastTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from tests.helpers.messages import one_line
from tests.helpers.other_llms import save_tokenizer
from tests.helpers.recorded import GOLDEN

FOLDER = GOLDEN / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(FOLDER / "tokenizer.model")


def test_the_named_ids_are_the_recorded_ones(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.encode(""), tokenizer.decode([])) == ([], "")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 512)
    assert [tokenizer.piece(i) for i in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]


@pytest.mark.parametrize("token_id", [-1, 512, 32000])
def test_ids_beyond_the_vocabulary_have_no_text(
    tokenizer: SentencePieceTokenizer, token_id: int
) -> None:
    assert tokenizer.piece(token_id) == ""
    ids = tokenizer.encode("a dog")
    assert tokenizer.decode([*ids, token_id]) == tokenizer.decode(ids)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with one_line(CheckpointError, tmp_path / "tokenizer.model"):
        load_tokenizer(str(tmp_path))


def _save_fast_tokenizer(
    folder: Path, bos: str | None, begins: bool = False, eos: str | None = "<end>"
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "<start>": 1, "a": 2, "dog": 3, "?": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        core.post_processor = processors.TemplateProcessing(
            single="<start> $A", special_tokens=[("<start>", 1)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=eos, bos_token=bos, unk_token="?"
    ).save_pretrained(folder)


@pytest.mark.parametrize(
    ("bos", "begins", "rule", "bos_id"),
    [
        ("<start>", True, "auto", 1),
        ("<start>", False, "auto", None),  # it never puts it in front of a text itself
        ("<end>", False, "auto", None),
        (None, False, "auto", None),
        ("<start>", True, "off", None),
        ("<start>", False, "on", 1),
    ],
)
def test_another_language_model_brings_its_own_tokenizer(
    tmp_path: Path, bos: str | None, begins: bool, rule: Bos, bos_id: int | None
) -> None:
    _save_fast_tokenizer(tmp_path, bos, begins)
    tokenizer = load_tokenizer(str(tmp_path), rule)
    assert isinstance(tokenizer, FastTokenizer)
    assert (tokenizer.eos_id, tokenizer.bos_id) == (0, bos_id)
    assert tokenizer.encode("a dog") == [2, 3]
    assert tokenizer.decode([2, 3, 0]) == "a dog"
    assert tokenizer.piece(3) == "dog"


def test_what_no_tokenizer_brings_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with one_line(CheckpointError, tmp_path):
        load_tokenizer(str(tmp_path))
    _save_fast_tokenizer(tmp_path, None)
    with one_line(ConfigError, "model.bos: on, but", tmp_path, "has no bos token"):
        load_tokenizer(str(tmp_path), "on")
    _save_fast_tokenizer(tmp_path, None, eos=None)
    with one_line(CheckpointError, tmp_path, "has no eos token"):
        load_tokenizer(str(tmp_path))


def test_a_folder_with_both_forms_is_read_with_sentencepiece(tmp_path: Path) -> None:
    _save_fast_tokenizer(tmp_path, "<start>")  # tokenizer.json, of another vocabulary
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    assert load_tokenizer(str(tmp_path)).vocab_size == 512


def test_a_model_of_another_kind_takes_its_newer_tokenizer(tmp_path: Path) -> None:
    """Mistral's folders hold both; what is added to theirs stands in tokenizer.json alone."""
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    assert isinstance(load_tokenizer(str(tmp_path)), SentencePieceTokenizer)
    _save_fast_tokenizer(tmp_path, None)
    assert isinstance(load_tokenizer(str(tmp_path)), FastTokenizer)


@pytest.mark.parametrize("newer", [False, True])
def test_words_that_were_added_to_a_llama(tmp_path: Path, newer: bool) -> None:
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    words: dict[str, Any] = {"<|im_start|>": 512, "<|im_end|>": 513, "<pad>": 514, "<s>": 1}
    file = tmp_path / "added_tokens.json"
    if newer:
        file = tmp_path / "tokenizer_config.json"
        words = {"added_tokens_decoder": {str(i): {"content": w} for w, i in words.items()}}
    file.write_text(json.dumps(words))
    plain = SentencePieceTokenizer(FOLDER / "tokenizer.model")
    assert load_tokenizer(str(tmp_path)).special == plain.special, "no rows are known for them"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 514}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert set(tokenizer.special) == {*plain.special, "<|im_start|>", "<|im_end|>"}
    ids = tokenizer.encode("<|im_start|>a dog<|im_end|>")
    assert ids == [512, *plain.encode("a dog"), 513]
    assert tokenizer.decode(ids) == "a dog"
    # As of other special tokens: a space before the text that one of them closes.
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|> a dog<|im_end|>"
    assert tokenizer.piece(513) == "<|im_end|>"
    assert tokenizer.vocab_size == 512


def test_runs_of_spaces_are_no_special_words(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, ("<end>",), "<end>")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.special == ("<end>",)
    assert tokenizer.decode(tokenizer.encode("a  b")) == "a  b"
