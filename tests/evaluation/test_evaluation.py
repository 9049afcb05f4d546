"""Evaluation on real files: rows, scores and summary, whatever the number of processes."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from minigpt4.__main__ import main as command
from minigpt4.chat import Chat, load_chat
from minigpt4.models.llm_input import IMAGE_MARK
from tests.helpers.data_files import picture, read_rows, write_tar
from tests.helpers.repo import ROOT, EntryPoint
from tests.helpers.training import STAGE1
from tests.helpers.training import train as train_by_launcher

DESCRIBE = "eval_configs/tiny_evaluate.yaml"
SHORT = ["chat.max_new_tokens=5", "run.batch_size_eval=4", "run.num_workers=0"]


def captions_of(few: Path, output: Path) -> list[str]:
    """Options: the training YAML of stage 1 evaluated on two sets of shards."""
    return [
        "run.evaluate=True",
        f"model.ckpt={few}/projection.pth",
        f"datasets.laion.build_info.storage={few}/laion/",
        f"datasets.cc_sbu.build_info.storage={few}/cc_sbu/",
        f"run.output_dir={output}",
        *SHORT,
    ]


def evaluate(
    few: Path, output: Path, *changes: str, config: object = DESCRIBE, storage: Path | None = None
) -> list[object]:
    """Arguments: the shipped evaluation on held-out scenes."""
    return [
        *("evaluate", "--cfg-path", config, "--output", output, "--options"),
        f"model.ckpt={few}/projection.pth",
        f"datasets.cc_sbu_align.build_info.storage={storage or few / 'heldout_seen'}",
        "run.metrics=[exact_match]",
        *SHORT,
        *changes,
    ]


def summary_of(output: Path) -> dict[str, Any]:
    found = json.loads((output / "summary.json").read_text())["cc_sbu_align"]
    assert isinstance(found, dict)
    return found


def expected(
    few: Path, files: list[Path], prompts: Callable[[Chat], list[str]], stop: str
) -> list[str]:
    """What the inference core says to these pictures, four at a time."""
    options = [f"model.ckpt={few}/projection.pth", "chat.max_new_tokens=5"]
    chat = load_chat(DESCRIBE, options)
    greedy = dataclasses.replace(chat.options, do_sample=False)
    asked, outputs = prompts(chat), []
    for i in range(0, len(files), 4):
        shown = [[image] for image in chat.encode_images(files[i : i + 4])]
        outputs += chat.generate(asked[i : i + 4], shown, stop, greedy)
    return outputs


# What is written


def test_a_folder_is_described_with_the_prompts_in_turn(
    run_entry: EntryPoint, few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "new" / "out"
    with caplog.at_level(logging.INFO):
        run_entry.ok(command, *evaluate(few, output))
    assert {file.name for file in output.iterdir()} == {"cc_sbu_align.jsonl", "summary.json"}
    rows = read_rows(output / "cc_sbu_align.jsonl")
    files = [few / "heldout_seen" / "image" / f"{i}.jpg" for i in range(7)]
    assert [row["image"] for row in rows] == [str(file) for file in files]
    told = json.loads((few / "heldout_seen" / "filter_cap.json").read_text())["annotations"]
    assert [row["reference"] for row in rows] == [entry["caption"] for entry in told]

    def in_turn(chat: Chat) -> list[str]:
        prompts = chat.model.prompts
        assert len(prompts) == 4
        return [prompts[i % 4] for i in range(7)]

    assert [row["output"] for row in rows] == expected(few, files, in_turn, "###")
    assert [list(row) for row in rows] == [["image", "reference", "output", "score"]] * 7
    scores = [row["score"]["exact_match"] for row in rows]
    mean = sum(scores) / 7
    figures = {"exact_match": mean, "intervals": {"exact_match": [mean, mean]}}
    assert summary_of(output) == {"samples": 7, "unreadable": 0, **figures}
    table = next(r.getMessage() for r in caplog.records if "exact_match" in r.getMessage())
    assert "cc_sbu_align  exact_match  0.0000  0.0000 to 0.0000" in table
    assert "cc_sbu_align: 7 samples, 0 unreadable" in table


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    options = captions_of(few, tmp_path / "one")
    run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *options)
    options = [*captions_of(few, tmp_path / "two"), "run.num_workers=2"]
    result = train_by_launcher(*options, processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("outputs and scores: ") == 1, "only the main process speaks"
    names = ["cc_sbu.jsonl", "laion.jsonl", "summary.json"]
    for run in ("one", "two"):
        assert sorted(file.name for file in (tmp_path / run).iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    rows = read_rows(tmp_path / "one" / "laion.jsonl")
    keys = [f"{few}/laion/00000.tar/00000{i:04d}" for i in range(12)]
    assert [row["image"] for row in rows] == keys
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert list(summary) == ["laion", "cc_sbu"]
    assert [figures["samples"] for figures in summary.values()] == [12, 2]


def test_without_prompts_the_bare_image_is_captioned_to_the_end_of_the_line(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    changes = ['model.prompt_path=""', r'model.end_sym="\n"']
    run_entry.ok(command, *evaluate(few, tmp_path, *changes))
    files = [few / "heldout_seen" / "image" / f"{i}.jpg" for i in range(7)]
    outputs = [row["output"] for row in read_rows(tmp_path / "cc_sbu_align.jsonl")]
    assert outputs == expected(few, files, lambda _: [IMAGE_MARK] * 7, "\n")


def test_sampling_is_off_whatever_the_chat_section_says(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    for name, drawing in (("a", "False"), ("b", "True")):
        changes = [f"chat.do_sample={drawing}", "chat.temperature=5.0"]
        run_entry.ok(command, *evaluate(few, tmp_path / name, *changes))
    a, b = ((tmp_path / name / "cc_sbu_align.jsonl").read_bytes() for name in "ab")
    assert a == b


def test_what_cannot_be_read_has_a_row_that_says_so(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(few / "heldout_seen", copy)
    (copy / "image" / "1.jpg").write_text("no picture")
    (copy / "image" / "5.jpg").unlink()
    run_entry.ok(command, *evaluate(few, tmp_path / "out", storage=copy))
    rows = read_rows(tmp_path / "out" / "cc_sbu_align.jsonl")
    assert len(rows) == 7
    assert [number for number, row in enumerate(rows) if "error" in row] == [1, 5]
    assert list(rows[1]) == ["image", "error"]
    assert rows[1]["image"] == str(copy / "image" / "1.jpg")
    assert "not a readable picture" in rows[1]["error"]
    assert rows[5]["image"] == "5"
    assert "no image" in rows[5]["error"]
    assert rows[6]["image"] == str(copy / "image" / "6.jpg")
    summary = summary_of(tmp_path / "out")
    intervals = {"exact_match": [0.0, 0.0]}
    assert summary == {"samples": 7, "unreadable": 2, "exact_match": 0.0, "intervals": intervals}


def test_any_text_is_written_as_it_is(run_entry: EntryPoint, few: Path, tmp_path: Path) -> None:
    caption = rb'{"caption": "\u00e4 \ud83c\udf53 and more"}'
    shard = write_tar(tmp_path / "0.tar", {"a.jpg": picture(), "a.json": caption})
    options = [*captions_of(few, tmp_path / "out"), f"datasets.laion.build_info.storage={shard}"]
    run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *options)
    text = (tmp_path / "out" / "laion.jsonl").read_text(encoding="utf-8")
    assert "ä 🍓" in text
    (row,) = read_rows(tmp_path / "out" / "laion.jsonl")
    assert row["reference"] == "ä 🍓 and more"


def test_a_random_image_processor_is_told_of(
    run_entry: EntryPoint, few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    specs = "datasets.cc_sbu_align.vis_processor"
    crop = [f"{specs}.train.name=blip2_image_train", f"{specs}.train.random_crop=True"]
    named = [f"{specs}.eval.name=blip2_image_eval"]
    told = []
    for changes in (crop, [*crop, *named]):
        caplog.clear()
        run_entry.ok(command, *evaluate(few, tmp_path / "out", *changes))
        lines = [record.getMessage() for record in caplog.records]
        told.append([line for line in lines if "vis_processor.eval" in line])
    assert len(told[0]) == 1
    assert told[1] == []


# Metrics of one's own


def with_plugin(folder: Path, metric: str) -> Path:
    """The shipped YAML with a metric ``words`` from a file beside it."""
    (folder / "my_metrics.py").write_text(
        "from minigpt4.registry import METRICS\n\n"
        '@METRICS.register("words")\n'
        "def words(output: str, reference: str) -> float:\n"
        f"    return {metric}\n"
    )
    text = (ROOT / DESCRIBE).read_text()
    file = folder / "mine.yaml"
    file.write_text(text.replace("minigpt4.tools.tiny_world.scoring", "./my_metrics.py"))
    return file


@pytest.mark.usefixtures("own_registrations")
def test_a_metric_from_a_plugin(run_entry: EntryPoint, few: Path, tmp_path: Path) -> None:
    config = with_plugin(tmp_path, "len(output.split())")
    metrics = "run.metrics=[words,exact_match]"
    run_entry.ok(command, *evaluate(few, tmp_path / "out", metrics, config=config))
    rows = read_rows(tmp_path / "out" / "cc_sbu_align.jsonl")
    counts = [len(row["output"].split()) for row in rows]
    assert sum(counts) > 0
    assert [row["score"]["words"] for row in rows] == counts
    summary = summary_of(tmp_path / "out")
    assert list(summary) == ["samples", "unreadable", "words", "exact_match", "intervals"]
    assert summary["words"] == sum(counts) / 7


@pytest.mark.usefixtures("own_registrations")
def test_a_metric_that_fails_is_one_line_and_no_output_is_lost(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    config = with_plugin(tmp_path, "1 / 0")
    arguments = evaluate(few, tmp_path / "out", "run.metrics=[words]", config=config)
    error = run_entry.refused(command, *arguments)
    assert "run.metrics: words fails on the output" in error
    assert f"evaluate --rescore --output {tmp_path / 'out'}" in error
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["cc_sbu_align.jsonl"]
    again = ["evaluate", "--rescore", "--output", tmp_path / "out", "--metrics", "exact_match"]
    run_entry.ok(command, *again)
    summary = summary_of(tmp_path / "out")
    assert list(summary) == ["samples", "unreadable", "exact_match", "intervals"]


# What a user can get wrong


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("run.metrics=[exact_mach]", "run.metrics: unknown metric 'exact_mach'; known: "),
        ("run.metrcs=[exact_match]", "did you mean 'metrics'?"),
        ("run.batch_size_eval=0", "run.batch_size_eval: 0 must be greater than 0"),
        ("run.output_dir=README.md/out", "run.output_dir: README.md/out: "),
        ("run.resume_ckpt_path=README.md", "name the projection to evaluate in model.ckpt"),
    ],
)
@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_fault_is_one_line_before_anything_is_loaded(
    run_entry: EntryPoint, few: Path, tmp_path: Path, option: str, expected: str
) -> None:
    options = [*captions_of(few, tmp_path), option]
    error = run_entry.refused(train.main, "--cfg-path", STAGE1, "--options", *options)
    assert expected in error
    assert f"{STAGE1}: " in error


@pytest.mark.usefixtures("nothing_is_loaded")
def test_all_faults_are_told_at_once_and_training_keys_are_not_missed(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    config = tmp_path / "bare.yaml"
    config.write_text(
        "model: {arch: minigpt4, model_type: tiny}\n"
        "datasets: {cc_sbu_align: {build_info: {storage: /nowhere}}}\n"
        "run: {evaluate: True, batch_size_eval: 0, metrics: [blue]}\n"
        "chat: {temprature: 1}\n"
    )
    code, stderr = run_entry(train.main, "--cfg-path", config)
    assert code == 2
    lines = stderr.removeprefix("error: ").strip().splitlines()
    keys = [line.split(": ")[1] for line in lines]
    assert sorted(keys) == [
        "chat.temprature",
        "datasets.cc_sbu_align.build_info.storage",
        "datasets.cc_sbu_align.vis_processor.train.image_size",
        "run.batch_size_eval",
        "run.metrics",
        "run.output_dir",
    ]


def test_a_data_set_without_a_readable_sample_is_one_line(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(few / "heldout_seen", copy)
    for image in (copy / "image").iterdir():
        image.write_text("no picture")
    error = run_entry.refused(command, *evaluate(few, tmp_path / "out", storage=copy))
    assert "datasets.cc_sbu_align: no readable sample at the start of " in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "full"), 2)])
def test_an_interruption_leaves_the_old_files_and_no_half_one(
    run_entry: EntryPoint,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
    code: int,
) -> None:
    (tmp_path / "cc_sbu_align.jsonl").write_text("old")

    def interrupt(_: int) -> None:
        raise stop

    monkeypatch.setattr("os.fsync", interrupt)
    found, stderr = run_entry(command, *evaluate(few, tmp_path))
    assert found == code
    assert "Traceback" not in stderr
    assert [file.name for file in tmp_path.iterdir()] == ["cc_sbu_align.jsonl"]
    assert (tmp_path / "cc_sbu_align.jsonl").read_text() == "old"


# Beside it


def test_check_holds_an_evaluations_yaml_whole(
    run_entry: EntryPoint, few: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check = ["check", "--cfg-path", DESCRIBE]
    with caplog.at_level(logging.INFO):
        run_entry.ok(command, *check, *evaluate(few, Path())[5:])
    assert "it describes an evaluation" in caplog.text
    nowhere = evaluate(few, Path(), storage=Path("/nowhere"))[5:]
    assert "no such folder: /nowhere" in run_entry.refused(command, *check, *nowhere)


def test_the_command_needs_no_evaluation_yaml(
    run_entry: EntryPoint, few: Path, tmp_path: Path
) -> None:
    options = [*captions_of(few, tmp_path / "not_here"), "run.evaluate=False"]
    arguments = ["evaluate", "--cfg-path", STAGE1, "--output", tmp_path / "here", "--options"]
    run_entry.ok(command, *arguments, *options)
    assert (tmp_path / "here" / "summary.json").is_file()
    assert not (tmp_path / "not_here").exists()
