"""``apply-delta`` on what a user can get wrong: one line, exit code 2, no target."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt4.__main__ import main
from tests.helpers.llama_folders import llama_tensors, write_config, write_llama, write_weights
from tests.helpers.repo import EntryPoint

Folders = tuple[Path, Path, Path]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Base, delta and target."""
    base = write_llama(tmp_path / "llama", llama_tensors(32000, seed=1), shards=2)
    delta = write_llama(tmp_path / "delta", llama_tensors(32001, seed=2), shards=3)
    return base, delta, tmp_path / "vicuna"


def without_config(folders: Folders) -> str:
    (folders[1] / "config.json").unlink()
    return "holds no config.json"


def without_folder(folders: Folders) -> str:
    shutil.rmtree(folders[0])
    return "llama: no such folder"


def without_tokenizer(folders: Folders) -> str:
    (folders[1] / "tokenizer.model").unlink()
    return "holds no tokenizer.model"


def without_weights(folders: Folders) -> str:
    for file in folders[0].glob("pytorch_model*"):
        file.unlink()
    return "llama: holds no weights"


def without_index(folders: Folders) -> str:
    (folders[0] / "pytorch_model.bin.index.json").unlink()
    return "no pytorch_model.bin.index.json; fetch it too"


def broken_index(folders: Folders) -> str:
    (folders[0] / "pytorch_model.bin.index.json").write_text('{"weight_map"')
    return "not an index of shards"


def index_leads_outside(folders: Folders) -> str:
    index = {"weight_map": {"lm_head.weight": "../delta/pytorch_model-00001-of-00003.bin"}}
    (folders[0] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return "not an index of shards beside it"


def index_lists_more(folders: Folders) -> str:
    file = folders[0] / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.layers.9.weight"] = "pytorch_model-00001-of-00002.bin"
    file.write_text(json.dumps(index))
    return "the index lists model.layers.9.weight, no shard holds it"


def missing_shard(folders: Folders) -> str:
    (folders[1] / "pytorch_model-00002-of-00003.bin").unlink()
    return "pytorch_model-00002-of-00003.bin: missing"


def truncated_bin(folders: Folders) -> str:
    os.truncate(folders[1] / "pytorch_model-00002-of-00003.bin", 2000)
    return "pytorch_model-00002-of-00003.bin: damaged or cut short"


def truncated_safetensors(folders: Folders) -> str:
    write_weights(folders[0], llama_tensors(32000, seed=1), "safetensors", 1)
    os.truncate(folders[0] / "model.safetensors", 5000)
    return "model.safetensors: damaged or cut short"


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch it_ran",)


def code_in_a_shard(folders: Folders) -> str:
    torch.save({"lm_head.weight": Code()}, folders[0] / "pytorch_model-00001-of-00002.bin")
    return "it holds more than plain weights"


def no_tensors(folders: Folders) -> str:
    torch.save([1, 2], folders[0] / "pytorch_model-00001-of-00002.bin")
    return "holds something else than tensors"


def other_rows(folders: Folders) -> str:
    write_weights(folders[0], llama_tensors(31999, seed=1))
    return "model.embed_tokens.weight is [31999, 8], the delta"


def other_width(folders: Folders) -> str:
    tensors = llama_tensors(32000, seed=1)
    tensors["model.norm.weight"] = torch.ones(9).half()
    write_weights(folders[0], tensors)
    return "model.norm.weight is [9], the delta"


def fewer_tensors(folders: Folders) -> str:
    tensors = llama_tensors(32000, seed=1)
    del tensors["model.norm.weight"]
    write_weights(folders[0], tensors)
    return "20 tensors where the delta"


def more_tensors(folders: Folders) -> str:
    write_weights(folders[0], llama_tensors(32000, seed=1) | {"bias": torch.ones(1).half()})
    return "1 are unknown (first: bias)"


def other_dtype(folders: Folders) -> str:
    tensors = {name: value.bfloat16() for name, value in llama_tensors(32000, seed=1).items()}
    write_weights(folders[0], tensors)
    return "model.embed_tokens.weight is bfloat16"


def config_of_another_model(folders: Folders) -> str:
    write_config(folders[1], 32000, hidden_size=8, intermediate_size=16, num_attention_heads=2)
    return "where its config.json has"


def config_of_no_model(folders: Folders) -> str:
    (folders[1] / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    return "config.json: describes no language model"


def beyond_fp16(folders: Folders) -> str:
    tensors = llama_tensors(32000, seed=1)
    tensors["lm_head.weight"] = torch.full((32000, 8), 1e6)
    write_weights(folders[0], tensors)
    return "lm_head.weight: base plus delta is not finite"


def target_is_there(folders: Folders) -> str:
    folders[2].mkdir()
    return "vicuna exists already"


def foreign_work_folder(folders: Folders) -> str:
    work = folders[2].with_name("vicuna.applying")
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    return "no apply-delta has begun it"


def work_folder_is_a_file(folders: Folders) -> str:
    folders[2].with_name("vicuna.applying").write_text("")
    return "vicuna.applying: cannot be made"


MISTAKES: list[Callable[[Folders], str]] = [
    without_folder,
    without_config,
    without_tokenizer,
    without_weights,
    without_index,
    broken_index,
    index_leads_outside,
    index_lists_more,
    missing_shard,
    truncated_bin,
    truncated_safetensors,
    code_in_a_shard,
    no_tensors,
    other_rows,
    other_width,
    fewer_tensors,
    more_tensors,
    other_dtype,
    config_of_another_model,
    config_of_no_model,
    beyond_fp16,
    target_is_there,
    foreign_work_folder,
    work_folder_is_a_file,
]


def one_error(stderr: str) -> str:
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert stderr.rstrip().endswith(line), "nothing but the line is said after it"
    return line


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_one_line(
    folders: Folders, mistake: Callable[[Folders], str], run_entry: EntryPoint
) -> None:
    expected = mistake(folders)
    base, delta, target = folders
    arguments = ("apply-delta", "--base", base, "--delta", delta, "--target", target)
    code, stderr = run_entry(main, *arguments)
    assert code == 2
    assert expected in one_error(stderr)
    assert not target.exists() or not list(target.iterdir())
    assert not Path("it_ran").exists()


def test_places_that_cannot_be(folders: Folders, run_entry: EntryPoint) -> None:
    base, delta, target = folders
    for given, expected in (
        ((base, base, target), "are the same folder"),
        ((base, delta, base), "lies in"),
        ((base, delta, delta / "sub" / "vicuna"), "lies in"),
    ):
        flags = ("--base", given[0], "--delta", given[1], "--target", given[2])
        code, stderr = run_entry(main, "apply-delta", *flags)
        assert code == 2
        assert expected in one_error(stderr)


def test_a_run_begun_with_another_base_is_not_gone_on_with(
    folders: Folders, run_entry: EntryPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, delta, target = folders
    flags = ("--delta", delta, "--target", target)
    with monkeypatch.context() as patch:
        patch.setattr("minigpt4.cli.apply_delta._finish", lambda *_: exit(3))
        assert run_entry(main, "apply-delta", "--base", base, *flags)[0] == 3
    shutil.copytree(base, base.with_name("other"))
    code, stderr = run_entry(main, "apply-delta", "--base", base.with_name("other"), *flags)
    assert code == 2
    assert "was begun with another base or delta" in one_error(stderr)
    assert run_entry(main, "apply-delta", "--base", base, *flags)[0] == 0


def test_two_at_once_are_refused(folders: Folders, run_entry: EntryPoint) -> None:
    base, delta, target = folders
    work = target.with_name("vicuna.applying")
    work.mkdir()
    flags = ("--base", base, "--delta", delta, "--target", target)
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code, stderr = run_entry(main, "apply-delta", *flags)
    os.close(handle)
    assert code == 2
    assert "another apply-delta is writing there" in one_error(stderr)


def test_too_little_space_is_told_before_anything_is_written(
    folders: Folders, run_entry: EntryPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, delta, target = folders
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    flags = ("--base", base, "--delta", delta, "--target", target)
    code, stderr = run_entry(main, "apply-delta", *flags)
    assert code == 2
    assert "0.0 GB are free" in one_error(stderr)
    assert not list(target.with_name("vicuna.applying").glob("*.safetensors"))


def test_a_finished_shard_that_was_damaged_is_found(
    folders: Folders, run_entry: EntryPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, delta, target = folders
    flags = ("--base", base, "--delta", delta, "--target", target)
    with monkeypatch.context() as patch:
        patch.setattr("minigpt4.cli.apply_delta._finish", lambda *_: exit(3))
        run_entry(main, "apply-delta", *flags)
    shard = target.with_name("vicuna.applying") / "model-00002-of-00003.safetensors"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    code, stderr = run_entry(main, "apply-delta", *flags)
    assert code == 2
    assert f"{shard}: damaged" in one_error(stderr)
    assert "and run again" in one_error(stderr)
    assert not target.exists()
