"""Trackers: real ones read back, absent ones, and ones that fail in the middle."""

import builtins
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from minigpt4.registry import bind
from minigpt4.runners import trackers
from minigpt4.runners.run_log import RunLog
from minigpt4.runners.trackers import TrackerName, Trackers

CONFIG = {"run": {"init_lr": 1e-4, "trackers": ["tensorboard"]}, "model": {"arch": "minigpt4"}}


def run_of_four_steps(folder: Path, *names: str, first_step: int = 0) -> None:
    """Two epochs of two steps, a figure at each."""
    options: dict[str, Any] = {"first_step": first_step, "trackers": names, "config": CONFIG}
    with RunLog(folder, total_steps=4, steps_per_epoch=2, **options) as log:
        for done in range(first_step, 4):
            log.advance()
            log.step({"loss": 4.0 - done, "lr": 0.1}, epoch=done // 2, step=done % 2 + 1)
            if done % 2:
                log.epoch({"train_loss": 0.5 * done}, done // 2)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package told; wandb's own records go to files, though pytest sees them."""
    return [record.message for record in caplog.records if record.name.startswith("minigpt4")]


def in_the_log(folder: Path) -> int:
    return len((folder / "log.txt").read_text().splitlines())


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_what_a_yaml_may_name():
    def runner(trackers: tuple[TrackerName, ...] = ()) -> None: ...

    assert bind(runner, {"trackers": ["wandb", "tensorboard"]}, "run")[1] == []
    (fault,) = bind(runner, {"trackers": ["tensorbord"]}, "run")[1]
    assert fault.key == "run.trackers"
    assert "'tensorboard' or 'wandb'" in fault.text


def test_tensorboard_reads_what_was_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("tensorboard")
    run_of_four_steps(tmp_path, "tensorboard")
    assert scalars(tmp_path, "loss") == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert scalars(tmp_path, "train_loss") == [(2, 0.5), (4, 1.5)]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"arch: minigpt4" in events.read_bytes()
    assert told(caplog) == []


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path):
    pytest.importorskip("tensorboard")
    run_of_four_steps(tmp_path, "tensorboard")
    run_of_four_steps(tmp_path, "tensorboard", first_step=3)
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_absent_library_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    real_import = builtins.__import__

    def without(wanted: str, *arguments: Any, **options: Any) -> Any:
        if wanted.split(".")[0] == name or wanted == "torch.utils.tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(wanted, *arguments, **options)

    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    run_of_four_steps(tmp_path, name)
    assert told(caplog) == [
        f"run.trackers: the run goes on without {name} (No module named '{name}'); "
        f"pip install -e '.[{name}]'"
    ]
    assert in_the_log(tmp_path) == 6


class Recorder:
    """A tracker that works; or fails at the step or the end that it is told."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        self.got: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.made.append(self)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.got.append((step, dict(figures)))

    def close(self, failed: bool) -> None:
        self.closed.append(failed)


class FailsInTheMiddle(Recorder):
    def log(self, figures: Mapping[str, float], step: int) -> None:
        super().log(figures, step)
        if step == 2:
            raise ConnectionError("the server\nhas gone")


class FailsAtTheEnd(Recorder):
    def close(self, failed: bool) -> None:
        raise RuntimeError("cannot upload")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    known = {"good": Recorder, "middle": FailsInTheMiddle, "end": FailsAtTheEnd}
    monkeypatch.setattr(trackers, "_KNOWN", known)
    monkeypatch.setattr(Recorder, "made", [])
    return known


@pytest.mark.usefixtures("known")
def test_one_that_fails_in_the_middle_is_told_once_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run_of_four_steps(tmp_path, "middle", "good")
    broken, good = Recorder.made
    assert [step for step, _ in broken.got] == [1, 2]
    assert [step for step, _ in good.got] == [1, 2, 2, 3, 4, 4]
    assert good.closed == [False]
    assert told(caplog) == ["run.trackers: the run goes on without middle (the server has gone)"]
    assert in_the_log(tmp_path) == 6


@pytest.mark.usefixtures("known")
def test_one_that_fails_at_the_end_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run_of_four_steps(tmp_path, "good", "good", "end")
    assert len(Recorder.made) == 2, "one that is named twice is made once"
    assert Recorder.made[0].closed == [False]
    assert told(caplog) == ["run.trackers: the run goes on without end (cannot upload)"]


@pytest.mark.usefixtures("known")
def test_a_run_that_broke_is_told_to_the_trackers(tmp_path: Path):
    log = RunLog(tmp_path, total_steps=4, steps_per_epoch=2, trackers=["good"])
    with pytest.raises(KeyboardInterrupt), log:
        raise KeyboardInterrupt
    assert Recorder.made[0].closed == [True]


def test_tensorboard_on_a_disk_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its own writing thread meets the error; the run hears of it, and neither hangs nor ends."""
    pytest.importorskip("tensorboard")
    died: list[object] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    before = threading.enumerate()
    working = Trackers(["tensorboard"], tmp_path)
    working.log({"loss": 1.0}, 1)
    shutil.rmtree(tmp_path / "tensorboard")
    for step in range(2, 5):
        working.log({"loss": 1.0}, step)
    working.close()
    for thread in set(threading.enumerate()) - set(before):
        thread.join()
    (message,) = told(caplog)
    assert message.startswith("run.trackers: the run goes on without tensorboard (")
    assert "No such file or directory" in message


def test_tensorboard_where_it_cannot_write(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file in its place")
    run_of_four_steps(tmp_path, "tensorboard")
    (message,) = told(caplog)
    assert "the run goes on without tensorboard" in message
    assert in_the_log(tmp_path) == 6


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A wandb that has never been used, on a machine without an account."""
    module = pytest.importorskip("wandb")
    module.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    yield monkeypatch
    module.teardown()


def offline_run(folder: Path) -> bytes:
    """What wandb kept of its only offline run; its process writes the last of it when it ends."""
    pytest.importorskip("wandb").teardown()
    (run,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    return run.read_bytes()


def test_wandb_without_an_account_keeps_its_figures_offline(
    wandb: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    def asked(*_: object) -> str:
        raise AssertionError("wandb must not ask")

    wandb.setattr("builtins.input", asked)
    wandb.setattr("getpass.getpass", asked)
    run_of_four_steps(tmp_path, "wandb")
    kept = offline_run(tmp_path)
    for word in (b"loss", b"train_loss", tmp_path.name.encode(), b"minigpt4", b"init_lr"):
        assert word in kept, word
    (message,) = told(caplog)
    assert "offline (no API key is configured); later: wandb sync" in message
    assert (tmp_path / "wandb").exists()
    assert "wandb" not in capfd.readouterr().err, "one line of ours, none of wandb's"


@pytest.mark.parametrize(
    ("mode", "reason"), [("online", "no API key is configured"), ("offline", "")]
)
def test_wandb_with_a_mode_of_its_own_does_not_ask_either(
    wandb: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    reason: str,
):
    wandb.setenv("WANDB_MODE", mode)
    run_of_four_steps(tmp_path, "wandb")
    assert b"loss" in offline_run(tmp_path)
    assert [reason in message for message in told(caplog)] == [True] * bool(reason)


def test_wandb_disabled_writes_nothing(
    wandb: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    wandb.setenv("WANDB_MODE", "disabled")
    run_of_four_steps(tmp_path, "wandb")
    assert not (tmp_path / "wandb").exists()
    assert told(caplog) == []


def test_wandb_without_a_network_keeps_its_figures_offline(
    wandb: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    wandb.setattr(trackers, "_START_SECONDS", 1)
    wandb.setenv("WANDB_API_KEY", "a" * 40)
    run_of_four_steps(tmp_path, "wandb")
    assert b"loss" in offline_run(tmp_path)
    (message,) = told(caplog)
    assert "wandb keeps its figures offline (" in message
    assert "\n" not in message
