"""What several tests share: the repo as working folder, a few scenes, entry points in process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt4.cli.tiny_world.data_sets import write_data_sets
from minigpt4.errors import run_guarded

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def _in_the_repo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped YAML files name their files relative to the repo."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn world in real formats."""
    folder = tmp_path_factory.mktemp("scenes")
    write_data_sets(folder, seed=1, pairs=300, descriptions=24, heldout=6)
    return folder


EntryPoint = Callable[..., tuple[int, str]]


@pytest.fixture
def run_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> EntryPoint:
    """Run an entry point in this process; its exit code and what it wrote to stderr."""

    def run(main: Callable[[], int | None], *arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["entry", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run_guarded(main)
        return int(exit_.value.code or 0), capsys.readouterr().err

    return run
