"""Checkpoints to safetensors and back: nothing of the weights is lost, and both forms load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.__main__ import main
from minigpt4.weights.checkpoint import load_weights
from tests.helpers.checkpoints import original_checkpoint, own_checkpoint
from tests.helpers.repo import EntryPoint
from tests.helpers.tiny_models import build_tiny as build

TOWERS = {"vit_model": "assets/tiny/eva_vit.pth", "q_former_model": "assets/tiny/q_former.pth"}
Tensors = dict[str, torch.Tensor]


def convert(run_entry: EntryPoint, *paths: Path | str) -> str:
    return run_entry.ok(main, "convert", *paths)


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def projection() -> Tensors:
    return {"llama_proj.weight": torch.randn(160, 128), "llama_proj.bias": torch.randn(160)}


# There and back


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_checkpoint_of_ours(tmp_path: Path, run_entry: EntryPoint, suffix: str) -> None:
    checkpoint, there, back = own_checkpoint(), tmp_path / "a.safetensors", tmp_path / "b.pth"
    torch.save(checkpoint, tmp_path / f"a{suffix}")
    convert(run_entry, tmp_path / f"a{suffix}", there)
    assert_equal(load_weights(there), checkpoint["model"])
    convert(run_entry, there, back)
    assert load_weights(back).keys() == {"model"}
    assert_equal(load_weights(back)["model"], checkpoint["model"])


def test_the_originals_checkpoint_keeps_its_buffers(tmp_path: Path, run_entry: EntryPoint) -> None:
    checkpoint = original_checkpoint(q_former=True)
    torch.save(checkpoint, tmp_path / "a.pth")
    convert(run_entry, tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert_equal(load_weights(tmp_path / "a.safetensors"), checkpoint["model"])


def test_what_is_left_out_is_told(
    tmp_path: Path, run_entry: EntryPoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    content = {**own_checkpoint(), "model": {**projection(), "note": "text"}}
    torch.save(content, tmp_path / "a.pth")
    convert(run_entry, tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "left out, being no weights: note, optimizer, config, scaler, epoch" in caplog.messages


@pytest.mark.parametrize("option", TOWERS)
def test_towers_load_in_every_form(option: str, tmp_path: Path, run_entry: EntryPoint) -> None:
    there, back = tmp_path / "a.safetensors", tmp_path / "a.pth"
    convert(run_entry, TOWERS[option], there)
    convert(run_entry, there, back)
    content, returned = load_weights(TOWERS[option]), load_weights(back)
    assert ("model" in content) == ("model" in returned), "the form its readers expect"
    assert_equal(returned.get("model", returned), content.get("model", content))
    image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    expected = build().encode_frozen(image)
    for file in (there, back):
        assert torch.equal(build(f"model.{option}={file}").encode_frozen(image), expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_projection_loads_in_every_form(
    suffix: str, tmp_path: Path, run_entry: EntryPoint
) -> None:
    weights = projection()
    save_file(weights, tmp_path / "a.safetensors")
    if suffix == ".pth":
        convert(run_entry, tmp_path / "a.safetensors", tmp_path / "a.pth")
    model = build(f"model.ckpt={tmp_path}/a{suffix}")
    assert torch.equal(model.llama_proj.weight, weights["llama_proj.weight"])
    assert torch.equal(model.llama_proj.bias, weights["llama_proj.bias"])


def test_every_dtype_is_kept_and_shared_memory_is_written_apart(
    tmp_path: Path, run_entry: EntryPoint
) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    tensors = {str(dtype): torch.ones(2, dtype=dtype) for dtype in dtypes}
    tensors |= {"a": whole, "b": whole, "c": whole[1], "d": whole.T}
    for name, content in (("all", tensors), ("empty", {"a": whole, "e": torch.empty(0)})):
        torch.save(content, tmp_path / f"{name}.pth")
        convert(run_entry, tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors")
        convert(run_entry, tmp_path / f"{name}.safetensors", tmp_path / f"{name}.pt")
        assert_equal(load_weights(tmp_path / f"{name}.pt"), content)


# Mistakes


@pytest.mark.parametrize(
    ("source", "target", "mention"),
    [
        ("none.pth", "a.safetensors", "none.pth: no such file"),
        ("text.pth", "a.safetensors", "text.pth"),
        ("text.safetensors", "a.pth", "text.safetensors: damaged"),
        ("folder.pth", "a.safetensors", "folder.pth: a folder; name the file"),
        ("folder", "a.safetensors", "folder: the suffix must be one of"),
        ("good.pth", "folder", "folder: the suffix must be one of"),
        ("good.pth", "a.onnx", "a.onnx: the suffix must be one of"),
        ("good.pth", "a.bin", "exactly one of them must end in .safetensors"),
        ("good.safetensors", "a.safetensors", "exactly one of them must end in .safetensors"),
        ("good.pth", "good.safetensors", "good.safetensors: exists already"),
        ("good.pth", "folder.safetensors", "folder.safetensors: exists already"),
        ("good.pth", "none/a.safetensors", "a.safetensors: cannot be written"),
        ("numbers.pth", "a.safetensors", "numbers.pth: not a checkpoint"),
        ("tensor.pth", "a.safetensors", "tensor.pth: not a checkpoint"),
        ("no_names.pth", "a.safetensors", "no_names.pth: not a checkpoint"),
        ("empty.pth", "a.safetensors", "empty.pth: not a checkpoint"),
        ("sparse.pth", "a.safetensors", "sparse.pth: w cannot be held by safetensors"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    source: str, target: str, mention: str, tmp_path: Path, run_entry: EntryPoint
) -> None:
    (tmp_path / "text.pth").write_text("Not Found")
    (tmp_path / "text.safetensors").write_text("Not Found")
    for folder in ("folder", "folder.pth", "folder.safetensors"):
        (tmp_path / folder).mkdir()
    contents: dict[str, Any] = {
        "good": {"model": projection()},
        "numbers": {"model": {"a": 1}},
        "tensor": torch.ones(2),
        "no_names": [torch.ones(2)],
        "empty": {"model": {}},
        "sparse": {"w": torch.eye(3).to_sparse()},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
    save_file(projection(), tmp_path / "good.safetensors")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert mention in run_entry.refused(main, "convert", tmp_path / source, tmp_path / target)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
