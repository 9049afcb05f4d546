"""What several tests share: the repo as working folder, a few scenes, entry points in process."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.tools.tiny_world.data_sets import read_heldout, write_data_sets
from tests.helpers.browser import CHROMIUM, chromium
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.training import Stop, Trainings


def pytest_configure() -> None:
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture
def pictures(scenes: Path) -> list[Path]:
    return [file for _, file in read_heldout(scenes / "heldout_seen")]


@pytest.fixture(scope="session")
def projection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random numbers for the embedded default."""
    drawn = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=drawn) / 8 for shape in ((160, 128), (160,)))
    file = tmp_path_factory.mktemp("trained") / "projection.pth"
    torch.save({"model": {"llama_proj.weight": weight, "llama_proj.bias": bias}}, file)
    return file


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, projection: Path) -> Path:
    """The embedded default for transformers, written by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("exports") / "hf"
    command = f"-m minigpt4 export --to hf {folder} --cfg-path eval_configs/tiny_eval.yaml"
    options = ["--options", f"model.ckpt={projection}"]
    result = finished([sys.executable, *command.split(), *options])
    assert result.returncode == 0, result.stderr
    assert list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, driven by playwright."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} does not exist: apt-get install chromium")
    pytest.importorskip("playwright.sync_api")
    with chromium() as started:
        yield started


@pytest.fixture
def run_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> EntryPoint:
    return EntryPoint(
        set_argv=lambda argv: monkeypatch.setattr("sys.argv", argv),
        read_stderr=lambda: capsys.readouterr().err,
    )


@pytest.fixture
def trainings(run_entry: EntryPoint, scenes: Path, tmp_path: Path) -> Trainings:
    return Trainings(run_entry, scenes, tmp_path)


@pytest.fixture
def own_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What plug-ins of a test register is forgotten after it."""
    from minigpt4.registry import ALL_REGISTRIES

    for registry in ALL_REGISTRIES:
        for name in registry.names():
            registry.get(name)  # a part is imported when it is first named
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Send this process a signal, once, in the middle of its n-th step."""
    from minigpt4.tasks import ImageTextPretrainTask

    step_once = ImageTextPretrainTask.train_step

    def arrange(step: int, number: int) -> None:
        due = [number]

        def interrupted(
            self: ImageTextPretrainTask, model: Any, batch: Any, done: int
        ) -> torch.Tensor:
            if done + 1 == step and due:
                os.kill(os.getpid(), due.pop())
            return step_once(self, model, batch, done)

        monkeypatch.setattr(ImageTextPretrainTask, "train_step", interrupted)

    return arrange
