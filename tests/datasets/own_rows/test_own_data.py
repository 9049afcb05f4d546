"""One's own rows: from the first command of the page to an answer, and in every mixture."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from minigpt4.__main__ import main
from tests.helpers.data_files import read_rows, with_pictures, write_rows
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, EntryPoint

PAGE = ROOT / "docs" / "your_data.md"
OWN = ROOT / "train_configs" / "tiny_own_data.yaml"
CONVERSATION = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A square."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.mark.slow
def test_the_page_leads_from_rows_to_an_answer(tmp_path: Path, projection: Path) -> None:
    for name in ("train.py", "train_configs", "eval_configs", "assets", "prompts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "output" / "quickstart").mkdir(parents=True)
    (tmp_path / "output" / "quickstart" / "stage2.pth").symlink_to(projection)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 4
    outputs = []
    for block in blocks:
        done = finished(["bash", "-euo", "pipefail", "-c", block], tmp_path, PATH=path)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "7 rows, 0 of them bad" in outputs[1]
    assert outputs[3].strip()  # the answer
    (run,) = (tmp_path / "output" / "tiny_own_data").iterdir()
    losses = [line["loss"] for line in read_rows(run / "log.txt") if "loss" in line]
    assert losses[-1] < losses[0]


def test_the_rows_of_the_page_are_those_of_its_fields() -> None:
    page = PAGE.read_text()
    (rows,) = re.findall(r"<<'ROWS'\n(.*?)ROWS", page, flags=re.S)
    assert len([json.loads(line) for line in rows.splitlines()]) == 7
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, flags=re.S)[0])
    shipped = yaml.safe_load(OWN.read_text())["datasets"]["my_pairs"]
    assert shown["datasets"]["my_pairs"]["storage"] == shipped["storage"]
    assert shown["datasets"]["my_pairs"]["image_root"] == shipped["image_root"]


def write_config(tmp_path: Path, projection: Path, **datasets: dict[str, Any]) -> Path:
    config = yaml.safe_load(OWN.read_text())
    processor = config["datasets"]["my_pairs"]["vis_processor"]
    config["datasets"] = {
        name: {"type": "pairs", "vis_processor": processor, **entry}
        for name, entry in datasets.items()
    }
    config["model"]["ckpt"] = str(projection)
    config["run"] |= {
        "max_epoch": 1,
        "iters_per_epoch": 4,
        "batch_size_train": 4,
        "num_workers": 0,
        "output_dir": str(tmp_path / "runs"),
        "log_freq": 1,
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def rows_of_every_kind(tmp_path: Path) -> Path:
    with_pictures(tmp_path, "a.jpg", "b.jpg")
    return write_rows(
        tmp_path / "rows.jsonl",
        [
            {"image": "a.jpg", "caption": "a red square"},
            {"image": ["a.jpg", "b.jpg"], "messages": CONVERSATION},
            {"messages": CONVERSATION},
            {"image": "b.jpg", "instruction": "What is it?", "output": "A square."},
        ]
        * 3,
    )


def losses_of(tmp_path: Path) -> list[float]:
    (run,) = (tmp_path / "runs").iterdir()
    lines = read_rows(run / "log.txt")
    return [line["loss"] for line in lines if "loss" in line and "step" in line]


def test_rows_of_every_kind_are_trained_beside_words_alone(
    run_entry: EntryPoint, tmp_path: Path, projection: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {"storage": str(write_rows(tmp_path / "w.jsonl", [{"messages": CONVERSATION}] * 4))}
    mine = {"storage": str(rows_of_every_kind(tmp_path))}
    config = write_config(tmp_path, projection, mine=mine, words=words)
    caplog.set_level("INFO")
    code, stderr = run_entry(train.main, "--cfg-path", config)
    assert code == 0, stderr
    assert all(loss > 0 for loss in losses_of(tmp_path))
    assert "what the model reads of the first sample" in caplog.text
    (run,) = (tmp_path / "runs").iterdir()
    (checkpoint,) = run.glob("checkpoint_*.pth")
    before = torch.load(projection, weights_only=True)["model"]
    after = torch.load(checkpoint, weights_only=True)["model"]
    assert not torch.equal(before["llama_proj.weight"], after["llama_proj.weight"])


def test_cached_features_of_rows_give_the_pictures_numbers(
    run_entry: EntryPoint, tmp_path: Path, projection: Path
) -> None:
    mine = {"storage": str(rows_of_every_kind(tmp_path)), "val_fraction": 0.01}
    config = write_config(tmp_path, projection, mine=mine)
    cached = tmp_path / "features"
    code, stderr = run_entry(main, "cache-features", "--cfg-path", config, "--output", cached)
    assert code == 0, stderr
    losses = []
    for name, more in (("pictures", []), ("features", [f"datasets.mine.features={cached}"])):
        output = f"run.output_dir={tmp_path / name / 'runs'}"
        code, stderr = run_entry(train.main, "--cfg-path", config, "--options", output, *more)
        assert code == 0, stderr
        losses.append(losses_of(tmp_path / name))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.slow
def test_two_processes_one_of_which_sees_no_picture_stay_together(
    tmp_path: Path, projection: Path
) -> None:
    with_pictures(tmp_path, "a.jpg")
    rows = [{"image": "a.jpg", "caption": "a red square"}, {"messages": CONVERSATION}]
    # Two rows for two readers: each process has one of them.
    mine = {"storage": str(write_rows(tmp_path / "rows.jsonl", rows))}
    config = write_config(tmp_path, projection, mine=mine)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = finished([sys.executable, *launcher, "train.py", "--cfg-path", config])
    assert done.returncode == 0, done.stderr
    assert len(losses_of(tmp_path)) == 4


def test_an_evaluation_asks_for_the_last_answer_of_what_is_held_out(
    run_entry: EntryPoint, tmp_path: Path, projection: Path
) -> None:
    storage = rows_of_every_kind(tmp_path)
    held_out = write_rows(
        tmp_path / "val.jsonl",
        [
            {"image": "a.jpg", "messages": CONVERSATION},
            {"image": "b.jpg", "caption": "a blue ring"},
            {"messages": CONVERSATION},
            {"image": "gone.jpg", "caption": "lost"},
        ],
    )
    mine = {"storage": str(storage), "val_storage": str(held_out)}
    config = write_config(tmp_path, projection, mine=mine)
    options = ["run.evaluate=True", f"run.output_dir={tmp_path / 'eval'}", "chat.max_new_tokens=5"]
    code, stderr = run_entry(train.main, "--cfg-path", config, "--options", *options)
    assert code == 0, stderr
    rows = read_rows(tmp_path / "eval" / "mine.jsonl")
    assert [row.get("reference") for row in rows] == ["Yes.", "a blue ring", "Yes.", None]
    assert "no such file" in rows[3]["error"]
    assert rows[0]["image"] == str(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("rows", "root", "complaint"),
    [
        ('{"image": "../a.jpg", "caption": "x"}\n', ".", "jsonl:1: '../a.jpg' leaves image_root"),
        ('{"image": "a.jpg"}\n', ".", "none of its 1 rows can be used"),
        ('{"image": "gone.jpg", "caption": "x"}\n', ".", "gone.jpg: no such file"),
        ('{"image": "a.jpg", "caption": "x"}\n', "gone", "mine.image_root: no such folder"),
        ("", ".", "rows.jsonl:1: holds no row"),
    ],
)
def test_rows_that_cannot_be_trained_are_refused_before_anything_loads(
    run_entry: EntryPoint, tmp_path: Path, projection: Path, rows: str, root: str, complaint: str
) -> None:
    storage = tmp_path / "rows.jsonl"
    storage.write_text(rows)
    mine = {"storage": str(storage), "image_root": str(tmp_path / root)}
    code, stderr = run_entry(
        train.main, "--cfg-path", write_config(tmp_path, projection, mine=mine)
    )
    assert code == 2
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert complaint in line
    assert not (tmp_path / "runs").exists()
