"""What a user can get wrong: one clear line, exit code 2, nothing lost."""

import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

import demo
import train
from minigpt4.chat import load_chat
from minigpt4.errors import ConfigError, DataError
from tests.helpers.messages import one_line
from tests.helpers.repo import TINY, EntryPoint
from tests.helpers.training import STAGE1, stage1_options


@pytest.fixture
def arguments(scenes: Path, tmp_path: Path) -> list[str]:
    return ["--cfg-path", STAGE1, "--options", *stage1_options(scenes, tmp_path / "out")]


# Each key and message by itself: tests/config/test_config.py.
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.max_text_len=1", "did you mean 'max_txt_len'?"),
        ("datasets.laion.build_info.storag=1", "did you mean 'storage'?"),
        ("chat.temprature=1", "did you mean 'temperature'?"),
        ("datasets.laion.build_info.storage=/tmp/none/{00000..00003}.tar", "none of the 4 shards"),
        ("run.output_dir=README.md/runs", "README.md is a file"),
        ("run.output_dir=/proc/runs", "/proc cannot be written"),
        ("model.image_size=224", "model.image_size is 224"),
        pytest.param(
            "run.device=cuda",
            "run.device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_an_error_is_reported_before_anything_is_loaded(
    run_entry: EntryPoint, arguments: list[str], option: str, expected: str
):
    error = run_entry.refused(train.main, *arguments, option)
    assert expected in error
    assert option.split("=")[0].split(".")[0] in error


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("datasets.cc_sbu_align.vis_processor.train.image_sise=3", "did you mean 'image_size'?"),
        ("datasets.cc_sbu_align.vis_processor=5", "datasets.cc_sbu_align.vis_processor: 5"),
        ("datasets.cc_sbu_aling.data_type=images", "did you mean 'cc_sbu_align'?"),
        ("datasets.cc_sbu_align.vis_processor.train.image_size=64", "model.image_size is 112"),
        ("run.tsak=image_text_pretrain", "did you mean 'task'?"),
        ("chat.num_beams=0", "chat.num_beams: 0 must be greater than 0"),
    ],
)
def test_a_fault_in_a_chats_yaml_is_told_before_the_model_loads(
    monkeypatch: pytest.MonkeyPatch, option: str, expected: str
):
    monkeypatch.setattr("minigpt4.registry.MODELS.build", lambda *_, **__: pytest.fail("built"))
    with one_line(ConfigError, expected, TINY):
        load_chat(TINY, ["model.ckpt=", option])


def break_images(shard: Path, share: float) -> int:
    """Replace a share of a shard's images by noise; how many."""
    with tarfile.open(shard) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    images = [name for name, _ in members if name.endswith(".jpg")]
    broken = set(images[: int(len(images) * share)])
    with tarfile.open(shard, "w") as tar:
        for name, content in members:
            content = b"no picture" if name in broken else content
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return len(broken)


def test_broken_images_in_a_shard_are_skipped_and_named(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    assert break_images(copy / "laion" / "00000.tar", 0.3) > 10
    options = stage1_options(copy, tmp_path / "out", max_epoch=1, iters_per_epoch=6)
    run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *options)
    skipped = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert skipped
    assert "00000.tar/" in skipped[0]
    assert "not a readable picture" in skipped[0]


def test_shards_without_a_readable_image_end_the_run(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(scenes, copy)
    break_images(copy / "laion" / "00000.tar", 1.0)
    for workers in (0, 1):
        options = stage1_options(copy, tmp_path / "out", num_workers=workers)
        assert "datasets.laion: no readable sample" in run_entry.refused(
            train.main, "--cfg-path", STAGE1, "--options", *options
        )


def test_a_text_file_shown_as_an_image(tmp_path: Path):
    file = tmp_path / "notes.png"
    file.write_text("these are notes")
    chat = load_chat(TINY, ["model.ckpt="])
    session = chat.start()
    with one_line(DataError, "notes.png is not a readable picture"):
        chat.ask("What is this?", images=[file], session=session)
    assert session.conversation.messages == []


def test_a_full_disk_keeps_the_last_checkpoint(
    run_entry: EntryPoint, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full_at_the_second(descriptor: int) -> None:
        if "checkpoint_1.pth" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    assert "No space left on device" in run_entry.refused(train.main, *arguments)
    (run,) = (tmp_path / "out").iterdir()
    assert [file.name for file in run.glob("*checkpoint_*")] == ["checkpoint_0.pth"]
    assert json.loads((run / "log.txt").read_text().splitlines()[0])["epoch"] == 0
    torch.load(run / "checkpoint_0.pth", weights_only=True)


def test_a_folder_of_examples_that_is_not_there(run_entry: EntryPoint, tmp_path: Path):
    arguments = ["--cfg-path", TINY, "--port", "0", "--examples", tmp_path / "nowhere"]
    assert run_entry.refused(demo.main, *arguments).endswith("nowhere: no such folder")
