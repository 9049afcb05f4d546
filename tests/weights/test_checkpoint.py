import errno
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minigpt4.errors import CheckpointError, MiniGPT4Error
from minigpt4.weights.checkpoint import (
    load_into,
    load_trained,
    load_weights,
    save_atomically,
)
from tests.helpers.checkpoints import built_model, original_checkpoint, own_checkpoint
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model, one_case

# Reading and writing files


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_what_is_saved_is_loaded(tmp_path: Path, suffix: str) -> None:
    content = {"model": {"a": torch.rand(2, 3)}, "epoch": 3, "config": {"run": {"seed": 1}}}
    path = tmp_path / f"file{suffix}"
    save_atomically(content, path)
    loaded = load_weights(path)
    assert torch.equal(loaded["model"]["a"], content["model"]["a"])  # type: ignore[index]
    assert (loaded["epoch"], loaded["config"]) == (3, {"run": {"seed": 1}})
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with one_line(CheckpointError, tmp_path / "none.pth", "no such file"):
        load_weights(tmp_path / "none.pth")
    with one_line(CheckpointError, tmp_path, "a folder; name the file"):
        load_weights(tmp_path)


def test_a_file_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    torch.save({}, tmp_path / "w.pth")
    monkeypatch.setattr("torch.load", refuse)  # root may read every file
    with one_line(CheckpointError, tmp_path / "w.pth", "cannot be read (Permission denied)"):
        load_weights(tmp_path / "w.pth")


# Some of these first letters are instructions to the unpickler.
TEXTS = [
    b"",
    b"\x00",
    b"this is text\n",
    b"Not Found",
    b"error code: 1015",
    b"(a, b)",
    b"a,b\n1,2\n",
    b"GGGGGGGG",
    b"<!DOCTYPE html>\n<html>\n",
    b'{"model": 3}',
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
]


@pytest.mark.parametrize("content", TEXTS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_holds_no_weights_is_one_line(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with one_line(CheckpointError, path, "damaged"):
        load_weights(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_was_cut_short_is_one_line(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"a": torch.rand(500)}, path)
    else:
        save_file({"a": torch.rand(500)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with one_line(CheckpointError, path, "damaged or cut short"):
        load_weights(path)


def test_an_old_file_that_was_cut_short_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.rand(50)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with one_line(CheckpointError, path):
            load_weights(path)


class Code:
    """Runs a function when it is unpickled without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "it_ran"
    content = {"model": Code(trace)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with one_line(CheckpointError, path, "more than plain weights") as caught:
        load_weights(path)
    assert "weights_only" not in str(caught.value), "no advice to run the code"
    assert not trace.exists()


# Writing that fails


def old_and_new(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tmp_path / "checkpoint_0.pth"
    save_atomically({"a": torch.zeros(2)}, path)
    return path, {"a": torch.ones(100_000)}


def assert_untouched(path: Path) -> None:
    assert torch.equal(load_weights(path)["a"], torch.zeros(2))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("function", "error", "mention"),
    [
        ("os.fsync", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        ("os.replace", OSError(errno.ENOSPC, "No space left on device"), "output_dir"),
        ("torch.save", OSError(errno.ENOSPC, "No space left on device"), "output_dir"),
        ("torch.save", RuntimeError("[enforce fail]\n. file write failed"), "file write failed"),
        ("os.fsync", KeyboardInterrupt(), None),
    ],
)
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: BaseException,
    mention: str | None,
) -> None:
    path, content = old_and_new(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        expected = one_line(MiniGPT4Error, path, mention) if mention else pytest.raises(type(error))
        with expected:
            save_atomically(content, path)
    assert_untouched(path)
    save_atomically(content, path)
    assert len(load_weights(path)["a"]) == 100_000


def test_a_write_that_really_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path, content = old_and_new(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with one_line(MiniGPT4Error, path):
            save_atomically(content, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(path)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with one_line(MiniGPT4Error, tmp_path / "none" / "c.pth"):
        save_atomically({}, tmp_path / "none" / "c.pth")
    (tmp_path / "file").write_text("")
    with one_line(MiniGPT4Error, tmp_path / "file" / "c.pth"):
        save_atomically({}, tmp_path / "file" / "c.pth")


# Into a module


@pytest.mark.parametrize(
    ("weights", "mentions"),
    [
        ({"weight": torch.zeros(3, 2)}, ["1 missing (first: bias)"]),
        ({}, ["2 missing (first: bias, weight)"]),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.ones(3), "gain": torch.ones(1)},
            ["1 unknown (first: gain)"],
        ),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
            ["weight is [2, 3], the model wants [3, 2]"],
        ),
        (
            {"weight": torch.ones(2, 3), "gain": torch.ones(1)},
            ["1 missing (first: bias)", "1 unknown (first: gain)", "weight is [2, 3]"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    weights: dict[str, torch.Tensor], mentions: list[str]
) -> None:
    layer = nn.Linear(2, 3)
    load_into(layer, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "file.pth")
    assert layer.weight.requires_grad
    with one_line(CheckpointError, "file.pth", *mentions):
        load_into(layer, weights, "file.pth")
    assert torch.equal(layer.weight, torch.ones(3, 2))


# The trained projection


@pytest.mark.parametrize("q_former", [True, False])
def test_our_checkpoint_is_taken_back(q_former: bool, tmp_path: Path) -> None:
    checkpoint = own_checkpoint(q_former)
    assert set(checkpoint["model"]) == {"llama_proj.weight", "llama_proj.bias"}
    changed = {key: value + 1 for key, value in checkpoint["model"].items()}
    save_atomically({**checkpoint, "model": changed}, tmp_path / "checkpoint_3.pth")
    model = build_model(one_case(q_former=q_former))
    load_trained(model, load_weights(tmp_path / "checkpoint_3.pth"), "checkpoint_3.pth")
    assert torch.equal(model.llama_proj.weight, changed["llama_proj.weight"])
    assert torch.equal(model.llama_proj.bias, changed["llama_proj.bias"])
    assert model.llama_proj.weight.requires_grad


@pytest.mark.parametrize("q_former", [True, False])
def test_the_originals_checkpoint_with_its_buffers_is_taken(q_former: bool) -> None:
    checkpoint = original_checkpoint(q_former)
    assert len(checkpoint["model"]) > 3
    model = build_model(one_case(q_former=q_former))
    with torch.no_grad():
        model.llama_proj.weight.zero_()
    load_trained(model, checkpoint, "pretrained_minigpt4.pth")
    assert torch.equal(model.llama_proj.weight, checkpoint["model"]["llama_proj.weight"])


def test_a_half_precision_checkpoint_with_buffers_of_full_size_is_taken() -> None:
    buffers = {
        f"llama_model.model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(64)
        for n in range(32)
    }
    buffers["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    own = {key: value.half() for key, value in own_checkpoint()["model"].items()}
    model = build_model(one_case())
    load_trained(model, {"model": {**buffers, **own}}, "half.pth")
    assert model.llama_proj.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "mentions"),
    [
        ("visual_encoder.cls_token", torch.ones(1), ["visual_encoder.cls_token"]),
        ("Qformer.bert.embeddings.word_embeddings.weight", torch.ones(1), ["word_embeddings"]),
        ("query_tokens", torch.ones(1), ["query_tokens", "llama_proj.weight"]),
        ("ln_vision.weight", torch.ones(1), ["ln_vision.weight", "llama_proj.weight"]),
        ("llama_model.lm_head.weight", torch.ones(1), ["llama_model.lm_head.weight"]),
        ("llama_proj.2.weight", torch.ones(1), ["llama_proj.2.weight", "llama_proj.weight"]),
        ("surprise", torch.ones(1), ["surprise", "llama_proj.weight"]),
        ("llama_proj.weight", None, ["lacks llama_proj.weight"]),
        ("llama_proj.bias", None, ["lacks llama_proj.bias"]),
        ("llama_proj.bias", torch.full((64,), torch.nan), ["llama_proj.bias", "NaN or Inf"]),
        ("llama_proj.weight", torch.full((64, 32), torch.inf), ["weight", "holds NaN or Inf"]),
        ("llama_proj.weight", torch.full((64, 32), -torch.inf), ["weight", "holds NaN or Inf"]),
        ("llama_proj.weight", torch.ones(5120, 768), ["[5120, 768]", "[64, 32]", "(7B: 4096"]),
        ("llama_proj.weight", torch.ones(2, 2, 2), ["[2, 2, 2]", "[64, 32]"]),
        ("llama_proj.weight", torch.ones(()), ["[]", "[64, 32]"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
    name: str, value: torch.Tensor | None, mentions: list[str]
) -> None:
    model = build_model(one_case())
    before = [value.detach().clone() for value in model.llama_proj.parameters()]
    checkpoint = own_checkpoint()
    weights = {key: tensor + 1 for key, tensor in checkpoint["model"].items()}
    weights |= {name: value}
    checkpoint["model"] = {key: value for key, value in weights.items() if value is not None}
    with one_line(CheckpointError, "file.pth", *mentions):
        load_trained(model, checkpoint, "file.pth")
    assert all(map(torch.equal, before, model.llama_proj.parameters()))


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"model": None},
        {"model": {}},
        {"model": [1]},
        {"llama_proj.weight": torch.ones(1)},
        torch.ones(2),
        {"model": {"llama_proj.weight": 5, "llama_proj.bias": 5}},
        {"model": {0: torch.ones(1)}},
    ],
    ids=lambda content: repr(content)[:40],
)
def test_what_is_no_checkpoint_is_one_line(content: object) -> None:
    with one_line(CheckpointError, "file.pth"):
        load_trained(built_model(), content, "file.pth")


def test_a_projection_without_a_model_part_is_taken(tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in own_checkpoint()["model"].items()}
    save_file(weights, tmp_path / "p.safetensors")
    model = build_model(one_case())
    load_trained(model, load_weights(tmp_path / "p.safetensors"), "p.safetensors")
    assert torch.equal(model.llama_proj.weight, weights["llama_proj.weight"])
