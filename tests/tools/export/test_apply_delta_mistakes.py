"""``apply-delta`` on what a user can get wrong: one line, exit code 2, no target."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt4.__main__ import main
from minigpt4.files import lock_folder
from tests.helpers.llama_folders import llama_tensors, write_config, write_llama, write_weights
from tests.helpers.repo import EntryPoint


class Folders:
    """Base, delta and target of the command."""

    def __init__(self, folder: Path, entry: EntryPoint) -> None:
        self.base = write_llama(folder / "llama", llama_tensors(32000, seed=1), shards=2)
        self.delta = write_llama(folder / "delta", llama_tensors(32001, seed=2), shards=3)
        self.target = folder / "vicuna"
        self.work = folder / "vicuna.applying"
        self.entry = entry

    @property
    def arguments(self) -> list[object]:
        return ["apply-delta", "--base", self.base, "--delta", self.delta, "--target", self.target]

    def refused(self) -> str:
        return self.entry.refused(main, *self.arguments)


@pytest.fixture
def folders(tmp_path: Path, run_entry: EntryPoint) -> Folders:
    return Folders(tmp_path, run_entry)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch it_ran",)


def other_weights(folders: Folders, name: str, tensor: torch.Tensor | None) -> None:
    tensors = llama_tensors(32000, seed=1)
    tensors.pop(name, None)
    write_weights(folders.base, tensors if tensor is None else tensors | {name: tensor})


def truncated_safetensors(folders: Folders) -> None:
    write_weights(folders.base, llama_tensors(32000, seed=1), "safetensors", 1)
    os.truncate(folders.base / "model.safetensors", 5000)


def no_weights(folders: Folders) -> None:
    for file in folders.base.glob("pytorch_model*"):
        file.unlink()


def config_of_another_model(folders: Folders) -> None:
    size = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    write_config(folders.delta, 32000, **size)


def foreign_work_folder(folders: Folders) -> None:
    folders.work.mkdir()
    (folders.work / "notes.txt").write_text("mine")


FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00003.bin"
NORM = "model.norm.weight"
MISTAKES: dict[str, Callable[[Folders], object]] = {
    "llama: no such folder": lambda f: shutil.rmtree(f.base),
    "holds no config.json": lambda f: (f.delta / "config.json").unlink(),
    "holds no tokenizer.model": lambda f: (f.delta / "tokenizer.model").unlink(),
    "llama: holds no weights": no_weights,
    f"{SECOND}: missing": lambda f: (f.delta / SECOND).unlink(),
    f"{SECOND}: damaged or cut short": lambda f: os.truncate(f.delta / SECOND, 2000),
    "model.safetensors: damaged or cut short": truncated_safetensors,
    "it holds more than plain weights": lambda f: torch.save({"a": Code()}, f.base / FIRST),
    "holds something else than tensors": lambda f: torch.save([1, 2], f.base / FIRST),
    "model.embed_tokens.weight is [31999, 8], the delta": lambda f: write_weights(
        f.base, llama_tensors(31999, seed=1)
    ),
    "model.norm.weight is [9], the delta": lambda f: other_weights(f, NORM, torch.ones(9).half()),
    "20 tensors where the delta": lambda f: other_weights(f, NORM, None),
    "1 are unknown (first: bias)": lambda f: other_weights(f, "bias", torch.ones(1).half()),
    "model.norm.weight is bfloat16": lambda f: other_weights(f, NORM, torch.ones(8).bfloat16()),
    "lm_head.weight: base plus delta is not finite": lambda f: other_weights(
        f, "lm_head.weight", torch.full((32000, 8), 1e6)
    ),
    "where its config.json has": config_of_another_model,
    "config.json: describes no language model": lambda f: (f.delta / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": "wide"}'
    ),
    "vicuna exists already": lambda f: f.target.mkdir(),
    "are the same folder": lambda f: setattr(f, "delta", f.base),
    "llama; choose another folder": lambda f: setattr(f, "target", f.base),
    "delta; choose another folder": lambda f: setattr(f, "target", f.delta / "sub" / "vicuna"),
    "no apply-delta has begun it": foreign_work_folder,
    "vicuna.applying: cannot be made": lambda f: f.work.write_text(""),
}


@pytest.mark.parametrize("expected", MISTAKES)
def test_a_mistake_is_one_line(folders: Folders, expected: str) -> None:
    MISTAKES[expected](folders)
    assert expected in folders.refused()
    assert not folders.target.is_dir() or not list(folders.target.glob("*-of-00003.safetensors"))
    assert not Path("it_ran").exists()


@pytest.fixture
def interrupted(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """The command has ended before the target got its name."""
    with monkeypatch.context() as patch:
        patch.setattr("os.rename", lambda *_: exit(3))
        assert folders.entry(main, *folders.arguments)[0] == 3
    return folders


def test_a_run_begun_with_another_base_is_not_resumed(interrupted: Folders) -> None:
    base, interrupted.base = interrupted.base, interrupted.base.with_name("other")
    shutil.copytree(base, interrupted.base)
    assert "was begun with another base or delta" in interrupted.refused()
    interrupted.base = base
    interrupted.entry.ok(main, *interrupted.arguments)


def test_two_at_once_are_refused(folders: Folders) -> None:
    folders.work.mkdir()
    lock = lock_folder(folders.work)
    assert lock is not None
    assert "another apply-delta is writing there" in folders.refused()
    os.close(lock)


def test_too_little_space_is_reported_before_anything_is_written(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "0.0 GB are free" in folders.refused()
    assert not list(folders.work.glob("*.safetensors"))


def test_a_finished_shard_that_was_damaged_is_found(interrupted: Folders) -> None:
    shard = interrupted.work / "model-00002-of-00003.safetensors"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    line = interrupted.refused()
    assert f"{shard}: damaged" in line
    assert "and run again" in line
    assert not interrupted.target.exists()
