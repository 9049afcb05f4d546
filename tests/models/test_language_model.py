"""A language model that was taught other turns, or stands beside another one's tokenizer."""

import shutil
from pathlib import Path

import pytest
import torch

import train
from minigpt4.__main__ import main
from minigpt4.chat import load_chat
from minigpt4.errors import CheckpointError, ConfigError
from minigpt4.models.language_model import vocabulary_fault
from minigpt4.models.tokenizer import load_tokenizer
from tests.helpers.llama_folders import (
    GOLDEN_TOKENIZER,
    write_config,
    write_tokenizer,
    write_tokenizer_without,
    write_weights,
)
from tests.helpers.messages import one_line
from tests.helpers.repo import ROOT, EntryPoint

VICUNA_0, LATER = 32001, 32000
TINY = "eval_configs/tiny_eval.yaml"


def folder_of(folder: Path, rows: int, words: int = 32000, **settings: object) -> Path:
    """A LLaMA folder without weights: all that ``check`` reads."""
    folder.mkdir(exist_ok=True)
    write_config(folder, rows, **settings)
    write_tokenizer(folder / "tokenizer.model", words)
    return folder


@pytest.mark.parametrize(
    ("rows", "separator", "expected"),
    [
        (VICUNA_0, "###", None),
        (LATER, "###", "Vicuna v1.1 or later"),
        (LATER, "</s>", None),
        (VICUNA_0, "</s>", "Vicuna v0, whose separator is ###"),
        (LATER, None, None),  # the user says what it was taught
        (VICUNA_0, None, None),
    ],
)
def test_rows_tell_which_separator_a_vicuna_knows(
    tmp_path: Path, rows: int, separator: str | None, expected: str | None
) -> None:
    fault = vocabulary_fault(folder_of(tmp_path, rows), separator)
    assert (expected in fault) if expected and fault else fault is expected
    without_tokenizer = tmp_path / "tokenizer.model"
    without_tokenizer.unlink()
    assert vocabulary_fault(tmp_path, separator) == fault


@pytest.mark.parametrize("separator", ["###", "</s>"])
def test_of_other_models_nothing_is_known(tmp_path: Path, separator: str) -> None:
    assert vocabulary_fault("assets/tiny/llama", separator) is None
    assert vocabulary_fault("some/hub-id", separator) is None
    assert vocabulary_fault(folder_of(tmp_path, 32000, model_type="mistral"), separator) is None
    assert vocabulary_fault(folder_of(tmp_path, 49954, words=49953), separator) is None
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "config.json").write_text("{}")
    assert vocabulary_fault(tmp_path, separator) is None


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, VICUNA_0)
    shutil.copy(GOLDEN_TOKENIZER, folder / "tokenizer.model")
    assert vocabulary_fault(folder, "###") is None  # rows may be left over
    write_tokenizer(folder / "tokenizer.model", words=32003)
    assert "32003 words, the model 32001" in str(vocabulary_fault(folder, "###"))
    (folder / "config.json").write_text('{"vocab_size":')
    assert "not readable" in str(vocabulary_fault(folder, "###"))


@pytest.mark.parametrize(("piece", "name"), [("<s>", "bos"), ("</s>", "eos")])
def test_a_tokenizer_without_bos_or_eos(tmp_path: Path, piece: str, name: str) -> None:
    folder = folder_of(tmp_path, VICUNA_0)
    write_tokenizer_without(folder / "tokenizer.model", piece)
    assert f"has no {name} token" in str(vocabulary_fault(folder, "###"))
    with one_line(CheckpointError, folder / "tokenizer.model", f"no {name} token"):
        load_tokenizer(str(folder))


def test_bos_and_eos_are_those_of_the_tokenizer_whatever_the_settings_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, VICUNA_0, bos_token_id=0, eos_token_id=1)
    (folder / "special_tokens_map.json").write_text('{"bos_token": "</s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert vocabulary_fault(folder, "###") is None


# The same fault wherever a config is checked


@pytest.mark.parametrize(
    ("yaml_file", "options"),
    [
        (TINY, []),  # a chat, in the template of its preset
        (TINY, ["chat.template=vicuna_v0_first_release"]),
        (TINY, ["chat.template=llama_2", "model.end_sym='###'"]),
        ("eval_configs/tiny_evaluate.yaml", []),
        ("train_configs/tiny_stage1_pretrain.yaml", []),
        ("train_configs/tiny_stage2_finetune.yaml", ["chat.template=llama_2"]),
    ],
)
def test_a_later_vicuna_is_refused_where_turns_end_in_hashes(
    run_entry: EntryPoint, tmp_path: Path, scenes: Path, yaml_file: str, options: list[str]
) -> None:
    later = folder_of(tmp_path / "vicuna", LATER)
    options = [*options, f"model.llama_model={later}", *existing_paths(yaml_file, scenes)]
    code, stderr = run_entry(main, "check", "--cfg-path", yaml_file, "--options", *options)
    assert code == 2
    expected = f"{yaml_file}: model.llama_model: {later} has 32000 rows"
    assert expected in stderr
    (fault,) = [line for line in stderr.splitlines() if yaml_file in line]
    assert "dataset/PrepareVicuna.md" in fault
    assert (ROOT / "dataset" / "PrepareVicuna.md").is_file()

    folder_of(later, VICUNA_0)
    code, stderr = run_entry(main, "check", "--cfg-path", yaml_file, "--options", *options)
    assert ("whose separator is ###, not '</s>'" in stderr) == (
        options[0] == "chat.template=llama_2"
    )


def existing_paths(yaml_file: str, scenes: Path) -> list[str]:
    text = (ROOT / yaml_file).read_text()
    paths = ["model.ckpt="]
    if "laion" in text:
        paths.append(f"datasets.laion.build_info.storage={scenes}/laion")
        paths.append(f"datasets.cc_sbu.build_info.storage={scenes}/cc_sbu")
    elif "build_info" in text:
        paths.append(f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align")
    return paths


def test_training_and_chat_refuse_before_they_load(
    run_entry: EntryPoint, tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt4.registry.MODELS.build", lambda *_, **__: pytest.fail("built"))
    later = folder_of(tmp_path / "vicuna", LATER)
    with pytest.raises(ConfigError, match=r"Vicuna v1\.1 or later"):
        load_chat(TINY, ["model.ckpt=", f"model.llama_model={later}"])
    stage1 = "train_configs/tiny_stage1_pretrain.yaml"
    options = [f"model.llama_model={later}", *existing_paths(stage1, scenes)]
    code, stderr = run_entry(train.main, "--cfg-path", stage1, "--options", *options)
    assert code == 2
    assert "Vicuna v1.1 or later" in stderr


def test_llama_2_and_its_template_fit(run_entry: EntryPoint, tmp_path: Path) -> None:
    llama_2 = folder_of(tmp_path / "llama", LATER)
    write_weights(llama_2, {"weight": torch.zeros(1)}, shards=1)
    projection = tmp_path / "projection.pth"
    weights = {"weight": (4096, 5632), "bias": (4096,)}
    zeros = {f"llama_proj.{n}": torch.zeros(1).expand(shape) for n, shape in weights.items()}
    torch.save({"model": zeros}, projection)
    options = [f"model.llama_model={llama_2}", f"model.ckpt={projection}"]
    yaml_file = "eval_configs/minigpt4_llama2_eval.yaml"
    run_entry.ok(main, "check", "--cfg-path", yaml_file, "--options", *options)
