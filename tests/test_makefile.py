"""The two commands fail with a clear line, in a folder of their own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.processes import finished
from tests.helpers.repo import ROOT


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished(["make", "--no-print-directory", *arguments], clone, **environment)


@pytest.mark.parametrize("target", ["quickstart", "test", "demo"])
def test_a_wrong_python_is_one_line(clone: Path, target: str):
    result = make(clone, target, "PYTHON=false")
    assert result.returncode != 0
    assert "error: Python 3.10 or newer is needed, 'false' is not" in result.stdout


def test_a_full_disk_is_one_line(clone: Path):
    result = make(clone, "test", "NEEDED_KB=99999999999999")
    assert result.returncode != 0
    assert "error: about 8 GB of free disk are needed here" in result.stdout
    assert not (clone / ".venv").exists()


def test_a_demo_before_the_quickstart_is_one_line(clone: Path):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "installed").touch()
    result = make(clone, "demo")
    assert result.returncode != 0
    assert "error: there is nothing to chat with yet; run 'make quickstart' first" in result.stdout


def test_no_network_is_one_line_and_a_second_call_tries_again(clone: Path):
    for _ in range(2):
        result = make(clone, "test", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
        assert result.returncode != 0
        assert "error: installing failed" in result.stdout
        assert "is there a network?" in result.stdout
    assert not (clone / ".venv" / "installed").exists()
