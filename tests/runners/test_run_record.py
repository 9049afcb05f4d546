"""What a run leaves behind about itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from minigpt4.errors import MiniGPT4Error
from minigpt4.runners import run_folder
from minigpt4.runners.run_folder import environment, git_state, record

CONFIG = {"model": {"arch": "minigpt4"}, "run": {"seed": 7, "init_lr": 1e-4}, "chat": {}}


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text())


def test_a_run_says_what_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    monkeypatch.setattr("sys.argv", ["/home/jane/code/train.py", "--cfg-path", "a.yaml"])
    record(tmp_path, CONFIG, seed=7, processes=4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "environment.json"]
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == CONFIG
    told = read(tmp_path)
    assert told["seed"] == 7
    assert told["processes"] == 4
    assert told["launch"] == "job-17"
    assert told["command"] == ["train.py", "--cfg-path", "a.yaml"]
    assert torch.__version__.startswith(told["packages"]["torch"])
    assert {"minigpt4", "torch", "transformers", "accelerate", "timm"} <= set(told["packages"])
    assert {"tokenizers", "webdataset", "omegaconf"} <= set(told["packages"])
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert len(told["gpus"]) == torch.cuda.device_count()
    assert told["started"].endswith("+00:00")
    assert told["earlier_launches"] == []


def test_nothing_tells_whose_machine_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["/home/jane/code/train.py"])
    record(tmp_path, {}, seed=0)
    text = (tmp_path / "environment.json").read_text()
    for secret in (os.uname().nodename, sys.prefix, str(Path.cwd()), "/home"):
        assert f'"{secret}' not in text
        assert f"{secret}/" not in text


def test_a_resumed_run_keeps_the_earlier_launches(tmp_path: Path):
    for launch in range(3):
        record(tmp_path, CONFIG, seed=launch)
    told = read(tmp_path)
    assert told["seed"] == 2
    assert [earlier["seed"] for earlier in told["earlier_launches"]] == [0, 1]
    assert all("earlier_launches" not in earlier for earlier in told["earlier_launches"])


def test_a_damaged_record_is_written_anew(tmp_path: Path):
    for content in ('{"seed": 1', "[1, 2]", '{"earlier_launches": 5}'):
        (tmp_path / "environment.json").write_text(content)
        record(tmp_path, CONFIG, seed=4)
        assert read(tmp_path)["seed"] == 4
        assert read(tmp_path)["earlier_launches"] == []


def test_what_cannot_be_found_out_ends_no_run(monkeypatch: pytest.MonkeyPatch):
    def broken() -> int:
        raise RuntimeError("driver\nmismatch")

    monkeypatch.setattr("torch.cuda.device_count", broken)
    assert environment(seed=0)["gpus"] == "unknown (driver mismatch)"


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniGPT4Error, match=r"environment\.json: cannot be written"):
        record(tmp_path / "file", CONFIG, seed=0)


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=work"]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_git_commit_branch_and_changes(repository: Path):
    commit, package = git(repository, "rev-parse", "HEAD"), repository / "package"
    (repository / "notes.txt").write_text("not of the code")
    assert git_state(package) == {"commit": commit, "branch": "work", "dirty": False}
    (package / "code.py").write_text("2\n")
    assert git_state(package) == {"commit": commit, "branch": "work", "dirty": True}
    git(repository, "checkout", "--quiet", "--detach")
    assert git_state(package) == {"commit": commit, "branch": None, "dirty": True}


def test_a_package_inside_somebody_elses_repository_has_no_git_state(repository: Path):
    installed = repository / ".venv" / "minigpt4"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("1\n")
    assert git_state(installed) is None


def test_outside_a_repository_and_without_git(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    outside = tmp_path.parent / "outside"
    outside.mkdir(exist_ok=True)
    assert git_state(outside) is None
    monkeypatch.setenv("PATH", str(outside))
    assert git_state(repository / "package") is None


def test_git_that_hangs_is_not_waited_for(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(run_folder, "_GIT_SECONDS", 0.2)
    assert git_state(repository / "package") is None
