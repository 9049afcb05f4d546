"""Validation during a training: figures that are true, a training that feels nothing of it."""

import json
import logging
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from minigpt4.__main__ import main as command
from minigpt4.chat.generation import NonFiniteLogitsError
from minigpt4.config import load_config
from minigpt4.datasets.samples import DataSet, to_device
from minigpt4.evaluation.figures import best_value, is_smaller_better
from minigpt4.evaluation.ordered_batches import OrderedBatches
from minigpt4.models.llm_input import target_logits, target_loss
from minigpt4.registry import BUILDERS, MODELS, TASKS
from minigpt4.tasks import ImageTextPretrainTask
from tests.helpers.data_files import read_rows, write_rows
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, STAGE2, Stop, compare, only_run, stage1_options, trained
from tests.helpers.training import train as train_by_launcher

FRACTION = "datasets.cc_sbu.build_info.val_fraction=0.3"


def options_of(scenes: Path, output: Path, *more: str, **run: object) -> list[str]:
    """Two epochs of six steps, validated before and after every third."""
    settings = {"iters_per_epoch": 6, "log_freq": 3, "warmup_steps": 2, "valid_captions": 3} | run
    settings |= {"valid_splits": "[val]", "eval_every_steps": 3, "batch_size_eval": 8}
    options = stage1_options(scenes, output, **settings)
    return [*options, FRACTION, "chat.max_new_tokens=8", *more]


def run(run_entry: EntryPoint, *options: object, config: str = STAGE1) -> tuple[int, str]:
    return run_entry(train.main, "--cfg-path", config, "--options", *options)


def validations(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_rows(folder / "log.txt") if "valid" in line]


def built(config: str, options: list[str]) -> tuple[Any, list[DataSet]]:
    loaded = load_config(config, options)
    model = MODELS.build(loaded.arch, loaded.model_options(), device=torch.device("cpu"))
    names = loaded.datasets
    return model, [BUILDERS.build(name, names[name], name=name) for name in names]


def keys(dataset: DataSet, held_out: bool) -> list[str]:
    source = dataset.eval_source if held_out else dataset.source
    assert source is not None
    return [raw.key for unit in range(source.units) for raw in source.read(unit)]


@pytest.fixture
def validated(run_entry: EntryPoint, scenes: Path, tmp_path: Path) -> Path:
    assert run(run_entry, *options_of(scenes, tmp_path / "validated"))[0] == 0
    return only_run(tmp_path / "validated")


def test_the_figures_are_those_of_every_held_out_sample(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
):
    options = options_of(scenes, tmp_path / "run", "run.valid_control=True")
    assert run(run_entry, *options)[0] == 0
    folder = only_run(tmp_path / "run")
    told = validations(folder)
    assert [(line["epoch"], line["step"]) for line in told] == [
        *((0, 0), (0, 3), (0, 6)),
        *((1, 3), (1, 6)),
    ]
    figures = told[-1]["valid"]["cc_sbu"]

    model, datasets = built(STAGE1, [*options, f"model.ckpt={folder}/checkpoint_1.pth"])
    cc_sbu = next(dataset for dataset in datasets if dataset.name == "cc_sbu")
    task = TASKS.build("image_text_pretrain", {}, prompts=model.prompts, seed=1, rank=0)
    tokens = hits = 0
    loss = 0.0
    batches = list(OrderedBatches(cc_sbu, 1))
    for found in batches:  # one by one, padded, by another path than the program's
        assert found.batch is not None
        batch = to_device(found.batch, model.device)
        spliced = model.splice_batch(batch["image"], task.rows(model, batch, 0))
        with torch.no_grad():
            logits = model.logits(spliced)
        targets = spliced.targets[0, 1:]
        count = int((targets != -100).sum())
        tokens += count
        loss += count * target_loss(*target_logits(logits, spliced.targets)).item()
        hits += int((logits[0, :-1].argmax(-1) == targets)[targets != -100].sum())
    assert figures["samples"] == len(batches)
    assert figures["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert figures["token_accuracy"] == pytest.approx(hits / tokens)
    assert figures["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-5)
    assert figures["shuffled_loss"] != figures["loss"]
    assert 0 <= figures["exact_match"] <= 1
    assert "laion" not in told[-1]["valid"]  # it holds nothing out


def test_a_training_feels_nothing_of_its_validations(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, validated: Path
):
    options = [
        option
        for option in options_of(scenes, tmp_path / "plain")
        if "valid_splits" not in option and "eval_every" not in option
    ]
    assert run(run_entry, *options)[0] == 0
    plain = only_run(tmp_path / "plain")
    assert not (plain / "validation.jsonl").exists()
    for epoch in (0, 1):
        one, other = (trained(f / f"checkpoint_{epoch}.pth") for f in (plain, validated))
        assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [
        [line["loss"] for line in read_rows(folder / "log.txt") if "loss" in line]
        for folder in (plain, validated)
    ]
    assert losses[0] == losses[1]


def test_texts_and_pictures_of_the_same_few_samples_are_kept(validated: Path):
    rows = read_rows(validated / "validation.jsonl")
    assert len(rows) == 5 * 3
    assert {(row["epoch"], row["step"]) for row in rows} == {(0, 0), (0, 3), (0, 6), (1, 3), (1, 6)}
    pictures = [row["picture"] for row in rows]
    assert pictures[:3] * 5 == pictures
    assert {f"pictures/{file.name}" for file in (validated / "pictures").iterdir()} == {*pictures}
    assert all(row["reference"] and row["score"].keys() == {"exact_match"} for row in rows)
    assert all((validated / row["picture"]).read_bytes()[:4] == b"\x89PNG" for row in rows)


def test_the_best_checkpoint_is_the_one_of_the_best_figure(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
):
    """With a rate that spoils what was learnt the last is not the best."""
    options = options_of(scenes, tmp_path / "run", "run.best_metric=cc_sbu/token_accuracy")
    options += ["run.init_lr=0.3", "run.min_lr=0.3", "run.warmup_steps=5", "run.warmup_lr=1e-2"]
    assert run(run_entry, *options)[0] == 0
    folder = only_run(tmp_path / "run")
    told = [
        (line["valid"]["cc_sbu"]["token_accuracy"], line["epoch"], line["step"])
        for line in validations(folder)
    ]
    best = json.loads((folder / "best.json").read_text())
    value, epoch, step = max(told, key=lambda entry: entry[0])
    assert best == {"metric": "cc_sbu/token_accuracy", "value": value, "epoch": epoch, "step": step}
    again = ["run.evaluate=True", f"run.output_dir={tmp_path}/evaluated"]
    assert run(run_entry, *options, *again, f"model.ckpt={folder}/checkpoint_best.pth")[0] == 0
    checkpoint = torch.load(folder / "checkpoint_best.pth", weights_only=True)
    assert set(checkpoint) == {"model", "optimizer", "config", "scaler", "epoch"}


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_is_cut_goes_on_to_the_same_validations(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    validated: Path,
    stop_after: Stop,
    step: int,
):
    """Cut in the middle, and where a validation was due: it is left, and made up for."""
    options = options_of(scenes, tmp_path / "cut")
    stop_after(step, signal.SIGTERM)
    assert run(run_entry, *options)[0] == 143
    assert run(run_entry, *options, "run.resume=auto")[0] == 0
    assert compare(tmp_path / "cut", validated.parent) == []
    cut = only_run(tmp_path / "cut")
    assert validations(cut) == validations(validated)
    for name in ("validation.jsonl", "best.json"):
        assert (cut / name).read_text() == (validated / name).read_text()


def test_in_a_folder_of_its_own_a_run_has_a_best_of_its_own(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, validated: Path
):
    """With a rate that spoils what was learnt before, nothing gets better than it was."""
    options = options_of(scenes, tmp_path / "on", "run.init_lr=0.3", "run.min_lr=0.3")
    options.append(f"run.resume_ckpt_path={validated}/state_6.pth")
    assert run(run_entry, *options)[0] == 0
    folder = only_run(tmp_path / "on")
    told = validations(folder)
    assert [(line["epoch"], line["step"]) for line in told] == [(0, 6), (1, 3), (1, 6)]
    values = [line["valid"]["cc_sbu"]["loss"] for line in told]
    assert values[0] == validations(validated)[2]["valid"]["cc_sbu"]["loss"]
    assert json.loads((folder / "best.json").read_text())["value"] == min(values)
    assert (folder / "checkpoint_best.pth").is_file()


@pytest.mark.slow
def test_two_processes_tell_what_one_tells(scenes: Path, tmp_path: Path):
    """Before the first step: what is learnt afterwards is another with more processes."""
    found = []
    for processes in (1, 2):
        options = options_of(scenes, tmp_path / str(processes), "run.valid_control=True")
        result = train_by_launcher(*options, processes=processes)
        assert result.returncode == 0, result.stderr
        folder = only_run(tmp_path / str(processes))
        rows = [row for row in read_rows(folder / "validation.jsonl") if row["step"] == 0]
        found.append((validations(folder)[0]["valid"]["cc_sbu"], rows))
        assert len(validations(folder)) == 5
    (one, own), (two, other) = found
    assert one.keys() == two.keys()
    assert all(one[name] == pytest.approx(two[name], rel=1e-6) for name in one)
    assert own == other


@pytest.mark.parametrize("name", ["cc_sbu", "cc_sbu_align"])
def test_what_is_held_out_is_never_trained_on(scenes: Path, name: str):
    stage = {"cc_sbu": STAGE1, "cc_sbu_align": STAGE2}[name]
    key = f"datasets.{name}.build_info"
    _, whole = built(stage, [f"{key}.storage={scenes}/{name}/", "model.ckpt="])
    _, split = built(
        stage, [f"{key}.storage={scenes}/{name}/", f"{key}.val_fraction=0.3", "model.ckpt="]
    )
    (one,) = [dataset for dataset in whole if dataset.name == name]
    (other,) = [dataset for dataset in split if dataset.name == name]
    training, held_out = keys(other, held_out=False), keys(other, held_out=True)
    assert not {*training} & {*held_out}
    assert sorted(training + held_out) == sorted(keys(one, held_out=False))
    assert 0.1 < len(held_out) / len(training + held_out) < 0.5
    assert one.eval_source is None


def test_another_folder_can_be_held_out(run_entry: EntryPoint, scenes: Path, tmp_path: Path):
    options = [
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/",
        f"datasets.cc_sbu_align.build_info.val_storage={scenes}/heldout_seen/",
        f"run.output_dir={tmp_path}/run",
        *("model.ckpt=", "run.max_epoch=1", "run.iters_per_epoch=2", "run.num_workers=0"),
        *("run.valid_splits=[val]", "run.valid_captions=2", "chat.max_new_tokens=5"),
    ]
    assert run(run_entry, *options, config=STAGE2)[0] == 0
    folder = only_run(tmp_path / "run")
    assert [line["valid"]["cc_sbu_align"]["samples"] for line in validations(folder)] == [6, 6]
    names = {Path(row["image"]).parent for row in read_rows(folder / "validation.jsonl")}
    assert names == {scenes / "heldout_seen" / "image"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["run.valid_splits=[]"], "run.eval_every_steps: decides nothing without run.valid_splits"),
        (["run.valid_splits=[test]"], "run.valid_splits"),
        (
            ["datasets.cc_sbu.build_info.val_fraction=0"],
            "run.valid_splits: no data set holds anything out; give one val_storage",
        ),
        (["datasets.cc_sbu.build_info.val_fraction=1"], "must be at least 0 and less than 1"),
        (
            ["datasets.cc_sbu.build_info.val_storage=assets"],
            "build_info.val_storage: 'assets' names no shard",
        ),
        (
            ["datasets.cc_sbu.build_info.val_storage={scenes}/laion/"],
            "datasets.cc_sbu.build_info.val_fraction: val_storage and val_fraction both",
        ),
        (["run.best_metric=accuracy"], "did you mean 'token_accuracy'?"),
        (["run.best_metric=laion/loss"], "data set 'laion' holds nothing out"),
        (["run.best_metric=exact_match", "run.valid_captions=0"], "unknown figure 'exact_match'"),
        (["run.shard=fsdp"], "cannot be validated"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, changes: list[str], told: str
):
    changes = [change.format(scenes=scenes) for change in changes]
    options = options_of(scenes, tmp_path / "run", *changes)
    code, stderr = run_entry(command, "check", STAGE1, "--options", *options)
    assert code == 2
    assert told in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_a_split_without_a_sample_ends_before_the_first_step(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
):
    options = options_of(scenes, tmp_path / "run")
    options[options.index(FRACTION)] = FRACTION.replace("0.3", "1e-9")
    code, stderr = run(run_entry, *options)
    assert code == 2
    assert "datasets.cc_sbu: nothing that can be read is held out for the validation" in stderr
    assert not (only_run(tmp_path / "run") / "checkpoint_0.pth").exists()


def test_features_of_other_samples_are_refused(run_entry: EntryPoint, scenes: Path, tmp_path: Path):
    """A cache of all pictures would train on what is held out."""
    folder = f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/"
    cache = ["cache-features", "--cfg-path", STAGE2, "--output", tmp_path / "features"]
    assert run_entry(command, *cache, "--options", folder, "model.ckpt=")[0] == 0
    options = [
        *(folder, f"run.output_dir={tmp_path}/run", "model.ckpt=", "run.num_workers=0"),
        f"datasets.cc_sbu_align.features={tmp_path}/features",
        "datasets.cc_sbu_align.build_info.val_fraction=0.3",
        *("run.max_epoch=1", "run.iters_per_epoch=1", "run.valid_splits=[val]"),
        *("run.valid_captions=1", "chat.max_new_tokens=4"),
    ]
    code, stderr = run(run_entry, *options, config=STAGE2)
    assert code == 2
    assert "made with val_fraction 0.0, now 0.3: of other samples" in stderr
    split = [folder, "datasets.cc_sbu_align.build_info.val_fraction=0.3", "model.ckpt="]
    cache[-1] = tmp_path / "split"
    assert run_entry(command, *cache, "--options", *split)[0] == 0
    options[4] = f"datasets.cc_sbu_align.features={tmp_path}/split"
    code, stderr = run(run_entry, *options, config=STAGE2)
    assert code == 0, stderr  # trained from features, validated on the pictures themselves
    assert len(validations(only_run(tmp_path / "run"))) == 2


def test_numbers_that_overflow_while_texts_are_made_do_not_end_the_training(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def overflow(*_: object) -> None:
        raise NonFiniteLogitsError("Inf or NaN in word 3 of the answer")

    monkeypatch.setattr(ImageTextPretrainTask, "evaluation_step", overflow)
    with caplog.at_level(logging.WARNING):
        assert run(run_entry, *options_of(scenes, tmp_path / "run"))[0] == 0
    assert "validation: no texts of 3 samples: Inf or NaN in word 3" in caplog.text
    folder = only_run(tmp_path / "run")
    assert [line["valid"]["cc_sbu"]["loss"] > 0 for line in validations(folder)] == [True] * 5
    assert not (folder / "validation.jsonl").exists()


def test_questions_with_choices_are_validated_by_likelihood(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path
):
    fields = {"instruction": "What is it?", "choices": ["A ring.", "A star."], "answer": "A star."}
    rows = [
        {"image": f"{number}.jpg", **fields, "references": ["A star.", "It is a star."]}
        for number in range(6)
    ]
    for name in ("rows", "held_out"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    yaml = Path(STAGE2).read_text()
    yaml = yaml[: yaml.index("datasets:")] + yaml[yaml.index("run:") :]
    config = tmp_path / "choices.yaml"
    mine = f"{{type: pairs, storage: {tmp_path}/rows.jsonl, val_storage: {tmp_path}/held_out.jsonl"
    mine += f", image_root: {scenes}/heldout_seen/image"
    mine += ", vis_processor: {train: {name: blip2_image_eval, image_size: 112}}}"
    config.write_text(f"{yaml}\ndatasets:\n  mine: {mine}\n")
    options = [
        *("model.ckpt=", f"run.output_dir={tmp_path}/run", "run.max_epoch=1", "run.num_workers=0"),
        *("run.iters_per_epoch=2", "run.valid_splits=[val]", "run.valid_captions=6"),
        *("run.metrics=[multiple_choice,multiple_choice_per_token]", "run.valid_control=True"),
        "run.best_metric=mine/multiple_choice",
    ]
    code, stderr = run(run_entry, *options, config=str(config))
    assert code == 0, stderr
    folder = only_run(tmp_path / "run")
    figures = validations(folder)[-1]["valid"]["mine"]
    assert figures["samples"] == 6
    assert 0 <= figures["multiple_choice"] <= 1
    kept = read_rows(folder / "validation.jsonl")
    assert all(row["output"] in fields["choices"] for row in kept)
    assert all(len(row["log_probabilities"]) == 2 for row in kept)
    assert json.loads((folder / "best.json").read_text())["metric"] == "mine/multiple_choice"


def test_the_best_of_figures():
    assert is_smaller_better("loss")
    assert is_smaller_better("cc_sbu/perplexity")
    assert is_smaller_better("shuffled_loss")
    assert not is_smaller_better("token_accuracy")
    assert not is_smaller_better("exact_match")
    assert is_smaller_better("exact_match", "min")
    figures = {"a": {"loss": 1.0, "x": math.nan}, "b": {"loss": 2.0}}
    assert best_value("loss", figures) == 1.5
    assert best_value("b/loss", figures) == 2.0
    assert best_value("x", figures) is None
    assert best_value("c/loss", figures) is None
