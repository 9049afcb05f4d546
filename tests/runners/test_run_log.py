"""log.txt, plain lines and the bar of a terminal."""

import errno
import fcntl
import json
import logging
import os
import pty
import re
import resource
import select
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minigpt4.errors import MiniGPT4Error
from minigpt4.runners.run_log import RunLog
from tests.helpers.messages import one_line

FIGURES = {
    "loss": 1.23454,
    "lr": 9.8e-05,
    "grad_norm": 0.1234,
    "samples_per_second": 212.34,
    "tokens_per_second": 4210.1,
    "data_wait": 0.031,
    "memory_gb": 1.234,
    "eta_seconds": 83.2,
}


def open_log(folder: Path, **options: Any) -> RunLog:
    return RunLog(folder, **({"total_steps": 400, "steps_per_epoch": 100} | options))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text(folder).splitlines()]


def text(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def test_a_reading_is_a_json_line_and_a_plain_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.INFO)
    with open_log(tmp_path) as log:
        for _ in range(50):
            log.advance()
        log.step(FIGURES, epoch=0, step=50)
        log.epoch({"train_loss": 1.5, "train_lr": 1e-4}, 0)
    assert lines(tmp_path) == [
        {"epoch": 0, "step": 50, **FIGURES},
        {"epoch": 0, "train_loss": 1.5, "train_lr": 1e-4},
    ]
    assert list(lines(tmp_path)[0])[:3] == ["epoch", "step", "loss"]
    assert caplog.messages == [
        "epoch 1/4, step 50/100: loss 1.2345, lr 9.8e-05, grad norm 0.12, 212 samples/s, "
        "4210 tokens/s, 3 % waiting for data, 1.2 GB, 0:01:23 left",
        "epoch 1/4: mean loss 1.5000, lr 0.0001",
    ]
    assert capsys.readouterr().err == "", "where there is no terminal there is no bar"


def test_no_nan_in_json(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    figures = {"loss": float("nan"), "eta_seconds": float("inf"), "share_of_padding": 0.25}
    with open_log(tmp_path) as log:
        log.step(figures, epoch=3, step=1)
    assert lines(tmp_path) == [
        {"epoch": 3, "step": 1, "loss": None, "eta_seconds": None, "share_of_padding": 0.25}
    ]
    assert caplog.messages == [
        "epoch 4/4, step 1/100: loss nan, eta seconds inf, share of padding 0.25"
    ]


def test_other_processes_are_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.INFO)
    with open_log(tmp_path, main=False, trackers=["tensorboard", "wandb"]) as log:
        log.advance()
        log.step(FIGURES, epoch=0, step=1)
        log.epoch({"train_loss": 1.0}, 0)
        log.truncate(0)
        assert log.lines.size == 0
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == []
    assert capsys.readouterr().err == ""


def test_lines_after_the_last_save_can_be_cut(tmp_path: Path):
    with open_log(tmp_path) as log:
        log.truncate(50)
        assert not (tmp_path / "log.txt").exists()
        assert log.lines.size == 0
        log.step({"loss": 3.0}, epoch=0, step=1)
        saved = log.lines.size
        log.step({"loss": 2.0}, epoch=0, step=2)
    safe = text(tmp_path).splitlines(keepends=True)[0]
    with open(tmp_path / "log.txt", "a") as file:
        file.write('{"epoch": 0, "st')  # the machine stopped here
    with open_log(tmp_path, first_step=1) as log:
        log.truncate(saved)
        log.truncate(10_000)
        assert text(tmp_path) == safe
        log.step({"loss": 2.5}, epoch=0, step=2)
    assert [line["loss"] for line in lines(tmp_path)] == [3.0, 2.5]


@pytest.mark.parametrize(
    ("file", "reason"), [("", "Is a directory"), ("/dev/full", os.strerror(errno.ENOSPC))]
)
def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, file: str, reason: str):
    log = open_log(tmp_path)
    log.lines.path = tmp_path / file
    with one_line(MiniGPT4Error, log.lines.path, "cannot be written", reason), log:
        log.step({"loss": 1.0}, epoch=0, step=1)


def test_half_a_line_is_taken_back(tmp_path: Path):
    """A limit on the size of files stands for a disk with room for half a line."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_log(tmp_path) as log:
        log.step({"loss": 1.0}, epoch=0, step=1)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.lines.size + 10, before[1]))
            with pytest.raises(MiniGPT4Error, match=r"log\.txt: cannot be written"):
                log.step({"loss": 2.0}, epoch=0, step=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lines(tmp_path) == [{"epoch": 0, "step": 1, "loss": 1.0}]


@contextmanager
def terminal(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] = (24, 120)
) -> Iterator[Callable[[], str]]:
    """stderr is a terminal of so many rows and columns; a call of what this yields reads it."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def shown() -> str:
        told = b""
        while select.select([reader], [], [], 0.1)[0]:
            told += os.read(reader, 65536)
        return told.decode()

    # Line by line, as a real stderr: a terminal's buffer must not hold anything back.
    with os.fdopen(writer, "w", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        yield shown
    os.close(reader)


def test_a_terminal_has_one_bar_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    with terminal(monkeypatch) as shown:
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
        with open_log(tmp_path, first_step=99) as log:
            log.advance()
            log.step(FIGURES, epoch=0, step=100)
            log.epoch({"train_loss": 1.5}, 0)
            log.advance()
            log.step({"loss": 1.1}, epoch=1, step=1)
            logging.getLogger("minigpt4").info("something else")
        told = shown()
    assert "\r" in told
    assert "99/400" in told, "a resumed run's bar begins where it stood"
    rows = [row.split("\r")[-1] for row in re.split(r"\r?\n", told)]
    assert "epoch 1/4: mean loss 1.5000" in rows
    assert "something else" in rows
    assert re.search(
        r"epoch 1/4  25%\|.*100/400 .*loss 1.2345, lr 9.8e-05, grad 0.12, .*3 % wait", told
    )
    assert re.search(r"epoch 2/4  25%\|.*101/400 .*loss 1.1000", told)
    assert "step 100/100" not in told, "the bar says it"
    assert all(len(drawn) <= 120 for row in told.split("\n") for drawn in row.split("\r"))
    assert len(lines(tmp_path)) == 3


def test_a_terminal_that_does_not_know_its_size_has_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with terminal(monkeypatch, size=(0, 0)) as shown, open_log(tmp_path) as log:
        log.advance()
        log.step(FIGURES, epoch=0, step=1)
        told = shown()
    assert "loss 1.2345" in told
    assert all(len(drawn) <= 120 for drawn in told.split("\r"))


def test_a_failed_run_leaves_the_terminal_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    handlers = list(logging.getLogger().handlers)
    with terminal(monkeypatch) as shown:
        with pytest.raises(ValueError, match="not an epoch"), open_log(tmp_path):
            int("not an epoch")
        assert shown().endswith("\n")
    assert logging.getLogger().handlers == handlers
