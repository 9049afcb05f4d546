"""The chat in a terminal: real pipes, a real terminal with Ctrl-C, and every command."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from minigpt4.__main__ import main
from minigpt4.apps.terminal import Terminal, printable_text, write_grown
from minigpt4.chat import Chat, load_chat
from minigpt4.errors import DataError
from tests.helpers.processes import started
from tests.helpers.repo import ROOT, EntryPoint, tiny_assets

CONFIG = ["--cfg-path", "eval_configs/tiny_eval.yaml"]
PROGRAM = [sys.executable, "-m", "minigpt4", "chat"]
WAIT = 240.0  # seconds; nothing here takes as long unless it hangs


def with_weights(projection: Path, *options: str) -> list[str]:
    return [*CONFIG, "--options", f"model.ckpt={projection}", *options]


@pytest.fixture(scope="module")
def chat(projection: Path) -> Chat:
    options = [*tiny_assets(), f"model.ckpt={projection}", "chat.max_new_tokens=8"]
    return load_chat(ROOT / CONFIG[1], options)


@pytest.fixture
def terminal(chat: Chat, pictures: list[Path]) -> Terminal:
    return Terminal(chat, pictures[:1])


Output = pytest.CaptureFixture[str]


def test_a_prompt_gives_one_answer_on_stdout(
    chat: Chat, pictures: list[Path], projection: Path, capsys: Output
):
    options = with_weights(projection, "chat.max_new_tokens=8")
    images = [f"--image={file}" for file in pictures[:2]]
    main(["chat", *images, "--prompt", "What is this?", *options])
    assert capsys.readouterr().out == chat.ask("What is this?", pictures[:2]) + "\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image", "none.png", "--prompt", "What?"], "none.png: no such file"),
        (["--image", "README.md", "--prompt", "What?"], "README.md is not a readable picture"),
        (["--prompt", "  "], "the question is empty"),
        (["--prompt", "red circle " * 10_000], "tokens, but only"),
    ],
)
def test_a_mistake_is_one_line(
    run_entry: EntryPoint, projection: Path, arguments: list[str], expected: str
):
    assert expected in run_entry.refused(main, "chat", *arguments, *with_weights(projection))


def test_questions_from_a_pipe_in_a_locale_without_their_letters(
    pictures: list[Path], projection: Path, tmp_path: Path
):
    lines = [
        "What is this?",
        "",
        f"/image {pictures[1]}",
        "Und das? 😀 שלום \x1b[31m",
        f"/save {tmp_path}/talk.json",
        "/image none.png",
        "never asked",
    ]
    options = with_weights(projection, "chat.max_new_tokens=8")
    result = subprocess.run(
        [*PROGRAM, "--image", str(pictures[0]), *options],
        cwd=ROOT,
        input="\n".join(lines).encode(),
        capture_output=True,
        timeout=WAIT,
        check=False,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    error = result.stderr.decode()
    assert result.returncode == 2, error
    assert error.splitlines()[-1] == "error: none.png: no such file"
    assert "Traceback" not in error
    turns = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["images"] for turn in turns] == [[str(pictures[0])], [str(pictures[1])]]
    told = "".join(turn["answer"] + "\n\n" for turn in turns)
    assert result.stdout.decode() == told.encode("ascii", "replace").decode()


def test_turns_join_one_session_and_commands_change_it(
    terminal: Terminal, chat: Chat, pictures: list[Path], capsys: Output
):
    terminal.follow(["What is this?\n", f"/image {pictures[1]}\n", "And this?\n"])
    session = chat.start()
    answers = [
        chat.ask("What is this?", pictures[:1], session),
        chat.ask("And this?", pictures[1:2], session),
    ]
    assert capsys.readouterr().out == "".join(answer + "\n" for answer in answers)
    terminal.take("/retry")
    assert capsys.readouterr().out == answers[1] + "\n"
    assert [turn.answer for turn in terminal.turns] == answers
    terminal.take("/undo")
    assert [turn.question for turn in terminal.turns] == ["What is this?"]
    terminal.take("And this?")
    assert terminal.turns[1].images == [str(pictures[1])], "its picture comes again"
    assert capsys.readouterr().out == answers[1] + "\n"
    terminal.take("/clear")
    terminal.take("What is this?")
    assert terminal.turns[0].images == []
    assert capsys.readouterr().out == chat.ask("What is this?") + "\n"


def test_nothing_behind_quit_is_read(terminal: Terminal, capsys: Output):
    lines = iter(["/quit\n", "What is this?\n"])
    terminal.follow(lines)
    assert list(lines) == ["What is this?\n"]
    assert capsys.readouterr().out == ""


def test_a_conversation_is_saved(terminal: Terminal, tmp_path: Path, capsys: Output):
    terminal.take("What is **this**?")
    terminal.take(f"/save {tmp_path}/talk.md")
    terminal.take(f'/save "{tmp_path}/my talk.JSON"')
    assert r"What is \*\*this\*\*?" in (tmp_path / "talk.md").read_text()
    (turn,) = json.loads((tmp_path / "my talk.JSON").read_text())
    assert turn["question"] == "What is **this**?"
    assert turn["answer"] == terminal.turns[0].answer
    assert "saved: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/image", "name the file"),
        ("/image none.png", "none.png: no such file"),
        ("/image " + "a" * 5000, "is not a readable picture"),
        ("/image README.md", "README.md is not a readable picture"),
        ("/save", "nothing was asked yet"),
        ("/retry", "nothing was asked yet"),
        ("/undo", "nothing was asked yet"),
        ("/what", "/help lists them"),
        ("/", "/help lists them"),
    ],
)
def test_a_mistake_leaves_the_chat_as_it_was(
    terminal: Terminal, capsys: Output, line: str, expected: str
):
    with pytest.raises(DataError, match=re.escape(expected)):
        terminal.take(line)
    terminal.take(" /what is this?")
    assert [turn.question for turn in terminal.turns] == ["/what is this?"]
    for name in ("talk.txt", "", ".json"):
        with pytest.raises(DataError, match=r"ends in \.json or \.md"):
            terminal.take(f"/save {name}")


def test_a_full_context_is_told(chat: Chat, pictures: list[Path], capsys: Output):
    terminal = Terminal(chat, pictures[:1])
    for _ in range(40):
        terminal.take("Tell me about the red circle at the top.")
        if told := capsys.readouterr().err:
            break
    assert "the context is full: 1 of the oldest turns" in told


def test_what_is_written_cannot_steer_the_terminal(capsys: Output):
    assert printable_text("a\x1b[2Jb\rc\x9b31md\n\te\x7f\x00") == "a[2Jbc31md\n\te"
    write_grown("Half a", "Half a word")
    write_grown("Half a word", "Another")
    assert capsys.readouterr().out == " word\nAnother"


@dataclass
class Screen:
    """A real terminal with the chat in it."""

    keyboard: int
    process: subprocess.Popen[str]
    seen: str = ""

    def wait_for(self, pattern: str) -> str:
        """What stands on the screen up to a pattern, from the last one on."""
        until = time.monotonic() + WAIT
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < until, self.seen
            try:
                self.read()
            except OSError as error:  # the program has ended
                raise AssertionError(self.seen) from error
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def read(self) -> bool:
        """Read what the program has written; return whether it has within a second."""
        written = bool(select.select([self.keyboard], [], [], 1.0)[0])
        if written:
            self.seen += os.read(self.keyboard, 4096).decode("utf-8", "replace")
        return written

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def ends_with(self) -> int:
        """The exit code; what is still written is read."""
        until = time.monotonic() + WAIT
        with contextlib.suppress(OSError):  # the terminal is closed
            while time.monotonic() < until:
                if not self.read():
                    # A Ctrl-C just before readline waits for keys is noticed with the next line.
                    self.type("\n")
        return self.process.wait(timeout=WAIT)


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Whoever runs the tests in the background ignores Ctrl-C, and what they start with them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def screen(*arguments: str) -> Iterator[Screen]:
    keyboard, terminal = pty.openpty()
    given = {"preexec_fn": take_terminal, "env": {"TERM": "dumb"}}
    files = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with started([*PROGRAM, *arguments], **given, **files) as process:
        os.close(terminal)
        yield Screen(keyboard, process)
    os.close(keyboard)


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_then_leaves(
    pictures: list[Path], projection: Path, tmp_path: Path
):
    # An answer that would not end for long.
    options = with_weights(projection, "chat.max_new_tokens=350", "chat.min_length=350")
    with screen("--image", str(pictures[0]), *options) as shown:
        shown.wait_for("> $")
        shown.type("What is this?\n")
        shown.wait_for(r"What is this\?\r\n")
        shown.wait_for(r"\S+ \S+")  # it has begun
        shown.type("\x03")
        shown.wait_for(r"\(stopped\)\r\n> ")
        shown.type("/image none.png\n")
        shown.wait_for(r"error: none\.png: no such file\r\n> ")
        shown.type(f"/save {tmp_path}/talk.json\n")
        shown.wait_for(r"saved: .*\r\n> ")
        shown.type("\x03")
        assert shown.ends_with() == 130
        assert "Traceback" not in shown.seen
    (turn,) = json.loads((tmp_path / "talk.json").read_text())
    assert 1 < len(turn["answer"].split()) < 250


@pytest.mark.slow
def test_ctrl_d_leaves_and_arrow_up_brings_the_last_line(projection: Path):
    with screen(*with_weights(projection, "chat.max_new_tokens=4")) as shown:
        shown.wait_for("> $")
        shown.type("What is this?\n")
        assert "(stopped)" not in shown.wait_for(r"What is this\?\r\n(.*\r\n)+> ")
        shown.type("/help\n")
        shown.wait_for(r"/quit[^\n]*\r\n(.*\r\n)+> ")
        shown.type("\x1b[A\n")
        shown.wait_for(r"/quit[^\n]*\r\n(.*\r\n)+> ")
        shown.type("\x04")
        assert shown.ends_with() == 0


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback(projection: Path):
    command = [*PROGRAM, *with_weights(projection, "chat.max_new_tokens=4")]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write("What is this?\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("And this?\n" * 20)
            process.stdin.close()
        error = process.stderr.read()
        assert process.wait(timeout=WAIT) == 141
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
