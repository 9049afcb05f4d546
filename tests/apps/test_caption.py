"""Captions of folders and lists: the chat's own words, in order, whatever happens on the way."""

import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4.__main__ import main
from minigpt4.apps.captions_output import CaptionOutput
from minigpt4.chat import load_chat
from tests.helpers.data_files import bomb, write_rows
from tests.helpers.processes import descendants, started
from tests.helpers.repo import EntryPoint
from tests.helpers.repo import error_line as one_line

CONFIG = "eval_configs/tiny_eval.yaml"
ASK = "Describe this image in detail."
WAIT = 240.0  # seconds; nothing here takes as long unless it hangs

Row = dict[str, Any]
Caption = Callable[..., tuple[int, str]]


def rows_of(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines() if line]


@pytest.fixture
def options(projection: Path) -> list[str]:
    return [f"model.ckpt={projection}", "chat.max_new_tokens=8"]


@pytest.fixture
def caption(run_entry: EntryPoint, options: list[str], caplog: pytest.LogCaptureFixture) -> Caption:
    """The command in this process: input, output, anything else; exit code and what it said."""

    def run(given: object, output: Path, *arguments: object) -> tuple[int, str]:
        inputs = given if isinstance(given, list) else [given]
        files = ["--input", *inputs, "--output", output, *arguments]
        if "--options" not in arguments:
            files.append("--options")
        with caplog.at_level(logging.INFO):
            caplog.clear()
            code, error = run_entry(main, "caption", "--cfg-path", CONFIG, *files, *options)
            return code, "\n".join([error, *caplog.messages])

    return run


@pytest.fixture
def few(pictures: list[Path], tmp_path: Path) -> Path:
    """A list of 11 rows with prompts of many lengths, two bad pictures, and keys of its own."""
    (tmp_path / "text.jpg").write_text("no picture")
    rng = random.Random(0)
    lines: list[Row] = []
    for number in range(11):
        prompt = "What is " + "this and " * rng.randrange(12) + "that?"
        lines.append({"id": number, "image": str(pictures[number % 6]), "prompt": prompt})
    lines[3]["image"], lines[8]["image"] = "text.jpg", "none.png"
    del lines[5]["prompt"]
    file = write_rows(tmp_path / "few.jsonl", lines)
    with file.open("a") as opened:
        opened.write("\n")
    return file


def test_a_caption_is_what_the_chat_answers(
    caption: Caption, few: Path, tmp_path: Path, options: list[str]
):
    output = tmp_path / "deep" / "out.jsonl"
    code, error = caption(few, output, "--batch-size", 4)
    assert code == 0, error
    assert error.splitlines()[-1] == f"{output}: 11 rows; captions: 9, errors: 2"
    chat = load_chat(CONFIG, options)
    given, told = rows_of(few), rows_of(output)
    assert [row["id"] for row in told] == list(range(11))
    for asked, row in zip(given, told, strict=True):
        prompt = asked.get("prompt", ASK)
        rest = {"id": asked["id"], "image": asked["image"], "prompt": prompt}
        if asked["image"] in ("text.jpg", "none.png"):
            reason = "no such file" if asked["image"] == "none.png" else "unknown format"
            assert reason in row.pop("error")
            assert row == rest
        else:
            assert row == {**rest, "caption": chat.ask(prompt, [asked["image"]])}


def test_the_same_command_goes_on_wherever_it_was_cut(caption: Caption, few: Path, tmp_path: Path):
    alone, cut = tmp_path / "alone.jsonl", tmp_path / "cut.jsonl"
    assert caption(few, alone, "--batch-size", 2)[0] == 0
    whole = alone.read_bytes()
    ends = [end.end() for end in re.finditer(rb"\n", whole)]
    for place in (0, 5, ends[0], ends[4] - 1, ends[4], ends[4] + 1, ends[9] + 7):
        cut.write_bytes(whole[:place])
        shutil.copy(f"{alone}.settings.json", f"{cut}.settings.json")
        assert caption(few, cut, "--batch-size", 2)[0] == 0
        assert cut.read_bytes() == whole, place
    code, error = caption(few, cut, "--batch-size", 2)
    assert code == 0
    assert "nothing to do" in error
    assert "loading" not in error
    assert cut.read_bytes() == whole


def test_another_batch_size_goes_on_and_other_settings_do_not(
    caption: Caption, few: Path, tmp_path: Path
):
    output = tmp_path / "out.jsonl"
    assert caption(few, output, "--batch-size", 4)[0] == 0
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    kept = output.read_bytes()
    for changes, named in (
        (["--prompt", "What is this?"], "(--prompt, --input)"),
        (["--options", "chat.num_beams=2"], "(chat.num_beams)"),
        (["--options", "chat.repetition_penalty=1.3"], "(chat.repetition_penalty)"),
    ):
        code, error = caption(few, output, *changes)
        assert code == 2
        assert f"{output}: was made with other settings {named}" in one_line(error)
        assert "--overwrite" in one_line(error)
    with few.open("a") as file:
        file.write(json.dumps({"image": "one_more.png"}) + "\n")
    assert "other settings (--input)" in one_line(caption(few, output)[1])
    few.write_text("".join(few.read_text().splitlines(keepends=True)[:-1]))
    assert output.read_bytes() == kept
    assert caption(few, output, "--batch-size", 3)[0] == 0
    assert output.read_bytes() == whole
    assert caption(few, output, "--prompt", "What is this?", "--overwrite")[0] == 0
    assert rows_of(output)[5]["prompt"] == "What is this?"


def test_weights_trained_anew_under_the_same_name_are_others(
    caption: Caption, options: list[str], projection: Path, few: Path, tmp_path: Path
):
    weights, output = tmp_path / "weights.pth", tmp_path / "out.jsonl"
    shutil.copy(projection, weights)
    options[:] = [f"model.ckpt={weights}", "chat.max_new_tokens=2"]
    assert caption(few, output)[0] == 0
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "other settings (trained weights)" in one_line(caption(few, output)[1])


def test_folders_and_globs_in_order_and_every_kind_of_picture(
    caption: Caption, pictures: list[Path], tmp_path: Path
):
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    picture = Image.open(pictures[0])
    picture.save(folder / "c.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "d.GIF", save_all=True, append_images=[picture])
    picture.convert("RGBA").save(folder / "b" / "clear.webp")
    Image.new("RGB", (1, 1)).save(folder / "b" / "one.bmp")
    picture.save(folder / ".hidden" / "x.png")
    (folder / "b" / "notes.txt").write_text("none")
    (folder / "b" / "bomb.png").write_bytes(bomb(30_000))
    (folder / "h\n\x1b.png").write_bytes(b"")
    output = tmp_path / "out.jsonl"
    code, error = caption([folder, f"{folder}/*.png", pictures[1]], output)
    assert code == 0, error
    own = ["c.png", "cmyk.jpg", "d.GIF", "h\n\x1b.png"]
    below = ["b/bomb.png", "b/clear.webp", "b/one.bmp"]
    names = [f"{folder}/{name}" for name in [*own, *below, "c.png", "h\n\x1b.png"]]
    rows = rows_of(output)
    assert [row["image"] for row in rows] == [*names, str(pictures[1])]
    bad = {Path(row["image"]).name for row in rows if "error" in row}
    assert bad == {"bomb.png", "h\n\x1b.png"}
    assert rows[0]["caption"] == rows[7]["caption"]
    assert "pixels" in rows[4]["error"]


def test_a_prompt_that_does_not_fit_and_control_text_are_rows_like_others(
    caption: Caption, pictures: list[Path], tmp_path: Path, options: list[str]
):
    prompts = ["red circle " * 10_000, "a ### b <ImageHere> </s> \x00 \ud800?", "What is this? 😀"]
    rows = [{"image": str(pictures[0]), "prompt": prompt} for prompt in prompts]
    file = write_rows(tmp_path / "list.jsonl", rows)
    output = tmp_path / "out.jsonl"
    assert caption(file, output)[0] == 0
    chat = load_chat(CONFIG, options)
    first, *others = rows_of(output)
    assert "tokens, but only" in first["error"]
    for row, prompt in zip(others, prompts[1:], strict=True):
        assert row["caption"] == chat.ask(prompt, pictures[:1])
        assert row["prompt"] == prompt


def test_without_one_caption_the_exit_code_is_1(caption: Caption, tmp_path: Path):
    (tmp_path / "a.jpg").write_text("no picture")
    code, error = caption(tmp_path, tmp_path / "out.jsonl")
    assert code == 1
    assert "captions: 0, errors: 1" in error
    assert caption(tmp_path, tmp_path / "out.jsonl")[0] == 1, "and it stays so"


def test_drawn_words_are_the_same_each_time(caption: Caption, few: Path, tmp_path: Path):
    texts = {}
    for name, changes in (
        ("plain", []),
        ("no seed", ["chat.do_sample=True", "chat.temperature=3.0"]),
        ("seed", ["chat.do_sample=True", "chat.temperature=3.0", "chat.seed=1"]),
        ("again", ["chat.do_sample=True", "chat.temperature=3.0", "chat.seed=1"]),
    ):
        output = tmp_path / f"{name}.jsonl"
        assert caption(few, output, "--options", *changes)[0] == 0
        texts[name] = [row.get("caption") for row in rows_of(output)]
    assert texts["plain"] == texts["no seed"]
    assert texts["seed"] == texts["again"]
    assert texts["seed"] != texts["plain"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('"a.png"', "line 2: not an object"),
        ('{"picture": "a.png"}', 'line 2: "image" must name'),
        ('{"image": ""}', 'line 2: "image" must name'),
        ('{"image": "a.png", "prompt": " "}', 'line 2: "prompt" must be'),
        ('{"image": "a.png", "caption": "x"}', 'line 2: "caption" is a key of the output'),
    ],
)
def test_a_bad_line_in_a_list_is_told_before_anything_loads(
    caption: Caption, tmp_path: Path, line: str, expected: str
):
    file = tmp_path / "list.jsonl"
    file.write_text('{"image": "a.png"}\n' + line + "\n")
    code, error = caption(file, tmp_path / "out.jsonl")
    assert code == 2
    assert expected in one_line(error)
    assert "loading" not in error
    assert not (tmp_path / "out.jsonl").exists()


def test_mistakes_are_one_line(caption: Caption, few: Path, tmp_path: Path):
    output = tmp_path / "out.jsonl"
    (tmp_path / "empty").mkdir()
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("\n")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("mine\n")
    before = few.read_bytes()
    for expected, given, to, *more in (
        ("no such file or folder", "none/*.png", output),
        ("no picture in it", tmp_path / "empty", output),
        ("there is no row in it", nothing, output),
        ("--output", few, tmp_path),
        ("no run that could go on has written it", few, foreign),
        ("is an input", few, few, "--overwrite"),
        ("--batch-size: 0 must be greater than 0", few, output, "--batch-size", 0),
        ("--num-workers: 0 must be greater than 0", few, output, "--num-workers", 0),
        ("--prompt: empty", few, output, "--prompt", " "),
    ):
        code, error = caption(given, to, *more)  # type: ignore[arg-type]
        assert code == 2
        assert expected in one_line(error)
    assert few.read_bytes() == before
    assert foreign.read_text() == "mine\n"


# Real processes from here on.


def command(given: Path, output: Path, options: list[str], processes: int = 1) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    program = [sys.executable, *(torchrun if processes > 1 else []), "-m", "minigpt4", "caption"]
    program += ["--cfg-path", CONFIG, "--input", str(given), "--output", str(output)]
    return [*program, "--batch-size", "2", "--options", *options]


def wait_for_rows(job: subprocess.Popen[str], output: Path, rows: int) -> None:
    until = time.monotonic() + WAIT
    while not output.exists() or output.read_bytes().count(b"\n") < rows:
        assert job.poll() is None, job.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)


def many(pictures: list[Path], folder: Path, count: int) -> list[Path]:
    """A list of so many rows, of which every seventh picture is missing, and two output files."""
    rng = random.Random(1)
    rows = []
    for number in range(count):
        image = "none.png" if number % 7 == 3 else str(pictures[number % 6])
        prompt = "What is this" + " and that" * rng.randrange(9) + "?"
        rows.append({"id": number, "image": image, "prompt": prompt})
    return [write_rows(folder / "list.jsonl", rows), folder / "stopped", folder / "alone"]


def test_one_process_at_a_time_writes_an_output(caption: Caption, few: Path, tmp_path: Path):
    output = CaptionOutput(tmp_path / "out.jsonl", {})
    code, error = caption(few, output.path)
    assert code == 2
    assert "another process is writing it" in one_line(error)
    output.close()
    assert caption(few, output.path, "--overwrite")[0] == 0


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    caption: Caption, few: Path, tmp_path: Path
):
    full, alone = tmp_path / "full.jsonl", tmp_path / "alone.jsonl"
    assert caption(few, alone, "--batch-size", 2)[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings = Path(f"{alone}.settings.json").stat().st_size
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The largest file that may be written stands for a full disk.
        most = max(settings, len(alone.read_bytes()) - 100)
        assert most < len(alone.read_bytes()), "the settings are longer than the captions"
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        code, error = caption(few, full, "--batch-size", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert code == 2
    assert "cannot be written" in one_line(error)
    assert 0 < full.read_bytes().count(b"\n") < 11
    assert caption(few, full, "--batch-size", 2)[0] == 0
    assert full.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_killed_at_random_with_any_number_of_processes_nothing_differs(
    caption: Caption, pictures: list[Path], tmp_path: Path, options: list[str]
):
    given, killed, alone = many(pictures, tmp_path, 400)
    assert caption(given, alone, "--batch-size", 2)[0] == 0
    rng, rows = random.Random(2), 0
    for processes in (1, 2, 1, 2, 1, 2):
        with started(command(given, killed, options, processes)) as job:
            wait_for_rows(job, killed, rows + 1)
            time.sleep(rng.random() / 2)
        rows = killed.read_bytes().count(b"\n")
        assert alone.read_bytes().startswith(killed.read_bytes())
        assert rows < 400, "the kills came too late"
    with started(command(given, killed, options, processes=2)) as job:
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 0, error
    assert killed.read_bytes() == alone.read_bytes()
    assert [row["id"] for row in rows_of(killed)] == list(range(400))
    assert error.count("400 rows; captions: ") == 1, "only the main process logs"


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_which_then_goes_on(
    caption: Caption, pictures: list[Path], tmp_path: Path, options: list[str]
):
    given, killed, alone = many(pictures, tmp_path, 200)
    assert caption(given, alone, "--batch-size", 2)[0] == 0
    with started(command(given, killed, options, processes=2)) as job:
        wait_for_rows(job, killed, 10)
        os.kill(rank_of(job.pid, 1), signal.SIGKILL)
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode != 0
    assert "Signal 9" in error
    assert killed.read_bytes().count(b"\n") < 200
    assert caption(given, killed, "--batch-size", 2)[0] == 0
    assert killed.read_bytes() == alone.read_bytes()


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank; it has said so in its environment."""
    for process in descendants(launcher)[1:]:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return process
    raise AssertionError("no such rank")


@pytest.mark.slow
def test_under_torchrun_a_mistake_is_one_line(few: Path, tmp_path: Path, options: list[str]):
    (tmp_path / "out.jsonl").write_text("mine\n")
    with started(command(few, tmp_path / "out.jsonl", options, processes=2)) as job:
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 1
    assert error.count("error: --output") == 1
    assert "no run that could go on has written it" in error


@pytest.mark.slow
def test_ctrl_c_ends_it_in_one_line_and_it_goes_on(
    caption: Caption, pictures: list[Path], tmp_path: Path, options: list[str]
):
    given, output, alone = many(pictures, tmp_path, 300)
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with started(command(given, output, options), **default) as job:
        wait_for_rows(job, output, 10)
        os.killpg(job.pid, signal.SIGINT)
        error = job.communicate(timeout=WAIT)[1]
    assert job.returncode == 130
    assert error.endswith("interrupted\n")
    assert "Traceback" not in error
    assert caption(given, output, "--batch-size", 2)[0] == 0
    assert caption(given, alone, "--batch-size", 2)[0] == 0
    assert output.read_bytes() == alone.read_bytes()
