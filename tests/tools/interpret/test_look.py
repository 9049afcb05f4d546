"""``look`` writes looks.json and its pictures, and tells a mistake in one line."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.__main__ import main
from minigpt4.chat import load_chat
from minigpt4.tools.interpret import nearest_words
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.repo import TINY as CONFIG

PROMPT = "Describe this image in detail."
Output = pytest.CaptureFixture[str]


def look(monkeypatch: pytest.MonkeyPatch, projection: Path, *arguments: object) -> None:
    options = ["--options", f"model.ckpt={projection}", "chat.max_new_tokens=6"]
    words = ["entry", "look", "--cfg-path", CONFIG, *options, *map(str, arguments)]
    monkeypatch.setattr("sys.argv", words)
    main()


def test_each_picture_has_its_words_and_overlays(
    monkeypatch: pytest.MonkeyPatch,
    projection: Path,
    pictures: list[Path],
    tmp_path: Path,
    capsys: Output,
):
    folder = tmp_path / "new" / "looks"
    shown = ["--image", *pictures[:2], "--output", folder, "--count", 3]
    look(monkeypatch, projection, *shown)
    printed = capsys.readouterr().out
    entries = json.loads((folder / "looks.json").read_text(encoding="utf-8"))
    chat = load_chat(CONFIG, [f"model.ckpt={projection}", "chat.max_new_tokens=6"])
    near = nearest_words(chat.model, chat.encode_images(pictures[:2]), count=3)
    files = {"looks.json"}
    for entry, file, tokens in zip(entries, pictures, near, strict=False):
        assert (entry["image"], entry["prompt"]) == (str(file), PROMPT)
        assert entry["answer"] == chat.ask(PROMPT, [file])
        told = [[word for word, _ in row] for row in entry["nearest_words"]]
        assert told == [[word.word for word in row] for row in tokens]
        for number, row in enumerate(entry["nearest_words"]):
            assert row[0][1] == pytest.approx(tokens[number][0].cosine, abs=1e-4)
        for written in (entry["picture"], *(overlay["file"] for overlay in entry["overlays"])):
            files.add(written)
            with Image.open(folder / written) as picture:
                assert picture.size == (224, 224)
        assert all(0 < overlay["image_share"] < 1 for overlay in entry["overlays"])
        assert "".join(o["token"] for o in entry["overlays"]).strip() == entry["answer"]
        assert 0 < entry["chance_cosines"]["random"] < entry["nearest_words"][0][0][1] < 1
        assert f"{file}: {PROMPT}" in printed
        assert f"{100 * entry['overlays'][0]['image_share']:.1f} %" in printed
    assert len(entries) == 2
    assert {file.name for file in folder.iterdir()} == files


def test_a_text_and_a_layer_are_chosen(
    monkeypatch: pytest.MonkeyPatch, projection: Path, pictures: list[Path], tmp_path: Path
):
    found = []
    for layer in ("0", "3"):
        arguments = ["--answer", "a red ring", "--layer", layer, "--prompt", "What is this?"]
        shown = ["--image", pictures[0], "--output", tmp_path / layer]
        look(monkeypatch, projection, *shown, *arguments)
        (entry,) = json.loads((tmp_path / layer / "looks.json").read_text(encoding="utf-8"))
        assert (entry["prompt"], entry["answer"]) == ("What is this?", "a red ring")
        assert [o["token"] for o in entry["overlays"]] == [" a", " red", " ring"]
        found.append([o["image_share"] for o in entry["overlays"]])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image", "none.png"], "none.png: no such file"),
        (["--image", "README.md"], "README.md is not a readable picture"),
        (["--output", "README.md"], "--output README.md: no folder to write into"),
        (["--layer", "4"], "no layer 4: this language model has attention layers 0 to 3"),
        (["--count", "0"], "--count: 0 must be greater than 0"),
        (["--prompt", " "], "--prompt: empty"),
        (["--answer", ""], "--answer: empty"),
        (["--prompt", "red " * 600], "but only 500 fit"),
    ],
)
def test_a_mistake_is_one_line(
    run_entry: EntryPoint, projection: Path, tmp_path: Path, arguments: list[str], expected: str
):
    given = ["--cfg-path", CONFIG, "--options", f"model.ckpt={projection}"]
    given += ["--image", "assets/examples/1.png", "--output", str(tmp_path / "looks"), *arguments]
    assert expected in run_entry.refused(main, "look", *given)
    assert not (tmp_path / "looks" / "looks.json").exists()


def test_a_disk_that_fills_up_is_one_line(
    run_entry: EntryPoint, projection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    given = ["--cfg-path", CONFIG, "--options", f"model.ckpt={projection}"]
    given += ["--image", "assets/examples/1.png", "--output", str(tmp_path), "--answer", "a ring"]
    assert "No space left on device" in run_entry.refused(main, "look", *given)
    assert not list(tmp_path.glob("*.json"))


def test_the_python_of_its_page_runs(projection: Path, tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/looks.md").read_text(), flags=re.S)
    file = tmp_path / "token_3.png"
    for given, instead in (
        ('load_chat("eval_configs/tiny_eval.yaml")', "load_chat(*chat_of_the_test)"),
        ('"token_3.png"', repr(str(file))),
    ):
        assert given in code
        code = code.replace(given, instead)
    options = [f"model.ckpt={projection}", "chat.max_new_tokens=8"]
    exec(code, {"chat_of_the_test": (CONFIG, options)})
    with Image.open(file) as picture:
        assert picture.size == (448, 448)
