import shutil
import sys
from pathlib import Path

import pytest

from minigpt4.errors import CheckpointError
from minigpt4.models.tokenizer import FastTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.recorded import GOLDEN

FOLDER = GOLDEN / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(FOLDER / "tokenizer.model")


def test_the_named_ids_are_the_recorded_ones(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 512)
    assert [tokenizer.piece(i) for i in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]


@pytest.mark.parametrize("token_id", [-1, 512, 32000])
def test_ids_beyond_the_vocabulary_have_no_text(
    tokenizer: SentencePieceTokenizer, token_id: int
) -> None:
    assert tokenizer.piece(token_id) == ""
    ids = tokenizer.encode("a dog")
    assert tokenizer.decode([*ids, token_id]) == tokenizer.decode(ids)


def test_nothing_is_nothing(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_a_llama_folder_is_read_with_sentencepiece() -> None:
    assert isinstance(load_tokenizer(str(FOLDER)), SentencePieceTokenizer)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path / "tokenizer.model") in str(error.value)
    assert "\n" not in str(error.value)


def _save_fast_tokenizer(folder: Path, bos: str | None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, "<start>": 1, "a": 2, "dog": 3, "?": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", bos_token=bos, unk_token="?"
    ).save_pretrained(folder)


@pytest.mark.parametrize(("bos", "bos_id"), [("<start>", 1), (None, 0)])
def test_another_language_model_brings_its_own_tokenizer(
    tmp_path: Path, bos: str | None, bos_id: int
) -> None:
    _save_fast_tokenizer(tmp_path, bos)
    tokenizer = load_tokenizer(str(tmp_path))
    assert isinstance(tokenizer, FastTokenizer)
    assert (tokenizer.eos_id, tokenizer.bos_id) == (0, bos_id)
    assert tokenizer.encode("a dog") == [2, 3]
    assert tokenizer.decode([2, 3, 0]) == "a dog"
    assert tokenizer.piece(3) == "dog"


def test_a_folder_without_tokenizer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "package", "with_model"),
    [
        ("sentencepiece", "sentencepiece", True),
        ("sentencepiece", "sentencepiece", False),
        ("google.protobuf", "protobuf", False),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str, with_model: bool
) -> None:
    if with_model:
        shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(str(tmp_path))
    assert str(error.value).rstrip(")").endswith(f"pip install {package}")
    assert "\n" not in str(error.value)


def test_a_folder_with_both_forms_is_read_with_sentencepiece(tmp_path: Path) -> None:
    _save_fast_tokenizer(tmp_path, "<start>")  # tokenizer.json, of another vocabulary
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    assert load_tokenizer(str(tmp_path)).vocab_size == 512
