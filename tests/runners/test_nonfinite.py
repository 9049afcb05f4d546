"""A dead model, numbers that are not finite, and what the first sample looks like."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from minigpt4.models.llm_input import Exchange, Row
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.nonfinite import PendingStep
from minigpt4.runners.optimizer import OptimizerStep
from minigpt4.runners.trainer import Trainer
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, STAGE2, only_run, stage1_options

Spoil = Callable[[Trainer], None]


def run(run_entry: EntryPoint, *options: object, config: str = STAGE1) -> tuple[int, str]:
    return run_entry(train.main, "--cfg-path", config, "--options", *options)


def one_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def spoil_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Spoil, Spoil], None]:
    """Do something to the runner in its n-th step (from 1), and undo it after the step."""
    step_once = Trainer.train_step

    def arrange(step: int, spoil: Spoil, mend: Spoil) -> None:
        def spoilt(self: Trainer, epoch: int, index: int) -> None:
            if self.step + 1 != step:
                step_once(self, epoch, index)
                return
            spoil(self)
            try:
                step_once(self, epoch, index)
            finally:
                mend(self)

        monkeypatch.setattr(Trainer, "train_step", spoilt)

    return arrange


def nan_in_q_former(runner: Trainer) -> None:
    assert runner.model.q_former is not None
    runner.model.q_former.encoder.layer[1].output_query.dense.bias.data[3] = torch.nan


def no_nan_in_q_former(runner: Trainer) -> None:
    assert runner.model.q_former is not None
    runner.model.q_former.encoder.layer[1].output_query.dense.bias.data[3] = 0.0


def dead_model(folder: Path, names: str) -> Path:
    """The embedded default's language model with some weights made zero."""
    shutil.copytree("assets/tiny/llama", folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        if names in name:
            value.zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("names", ["", "lm_head"])
def test_a_dead_language_model_is_told_before_the_first_step(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, names: str
):
    folder = dead_model(tmp_path / "llama", names)
    options = [*stage1_options(scenes, tmp_path / "out"), f"model.llama_model={folder}"]
    code, stderr = run(run_entry, *options)
    assert code == 2
    assert "the LLM or its inputs are dead: before the first step the loss is" in one_line(stderr)
    assert "model.llama_model" in one_line(stderr)
    assert not list(only_run(tmp_path / "out").glob("*.pth"))


def test_a_model_with_nan_is_told_with_the_module(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_once = Trainer.train

    def spoilt(self: Trainer) -> object:
        nan_in_q_former(self)
        return train_once(self)

    monkeypatch.setattr(Trainer, "train", spoilt)
    code, stderr = run(run_entry, *stage1_options(scenes, tmp_path))
    assert code == 2
    assert "are dead: before the first step the loss is nan" in one_line(stderr)
    assert "that of q_former.encoder.layer.1.output_query.dense." in one_line(stderr)


def test_the_first_sample_is_shown_as_the_model_reads_it(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    projection: Path,
    caplog: pytest.LogCaptureFixture,
):
    options = [
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align",
        f"model.ckpt={projection}",
        f"run.output_dir={tmp_path}",
        *("run.max_epoch=1", "run.iters_per_epoch=1", "run.num_workers=0"),
    ]
    with caplog.at_level("INFO"):
        assert run(run_entry, *options, config=STAGE2)[0] == 0
    (text,) = [r.getMessage() for r in caplog.records if "what the model reads" in r.getMessage()]
    lines = text.splitlines()
    assert "<s>###Human: <Img>" in lines[1]
    assert lines[2].split() == [*lines[2].split()[:1], "the", "image"]
    assert "</Img>" in lines[3]
    assert "###Assistant: " in lines[3]
    assert "learnt: " in lines[4]
    assert "###" in lines[4]
    positions = [line.split()[0].split("-") for line in lines[1:]]
    assert all(int(a[-1]) + 1 == int(b[0]) for a, b in itertools.pairwise(positions))


def test_nan_in_a_step_ends_the_run_and_is_not_learnt(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    spoil_at: Callable[[int, Spoil, Spoil], None],
):
    spoil_at(5, nan_in_q_former, no_nan_in_q_former)
    code, stderr = run(run_entry, *stage1_options(scenes, tmp_path, save_every_steps=1))
    assert code == 2
    line = one_line(stderr)
    assert "the loss is nan at epoch 1, step 2, rank 0" in line
    assert "it starts in q_former.encoder.layer.1.output_query.dense" in line
    assert "00000.tar/" in line
    assert "run.on_nonfinite: skip" in line
    folder = only_run(tmp_path)
    (told,) = map(json.loads, (folder / "nonfinite.jsonl").read_text().splitlines())
    assert [told["epoch"], told["step"], told["rank"], told["loss"]] == [1, 2, 0, "nan"]
    assert len(told["keys"]) == 4
    newest = torch.load(folder / "state_4.pth", weights_only=True)
    assert all(value.isfinite().all() for value in newest["model"].values())


@pytest.fixture
def late_figures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a GPU: whether a step was finite is looked at in the next; its numbers so far."""
    make, looked = PendingStep.__init__, []

    def make_late(self: PendingStep, *args: Any) -> None:
        make(self, *args)
        self.known = False
        looked.append(self.window[0].number)

    monkeypatch.setattr(PendingStep, "__init__", make_late)
    return looked


def test_what_is_known_late_is_not_learnt_either(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    spoil_at: Callable[[int, Spoil, Spoil], None],
    late_figures: list[int],
):
    projections: list[torch.Tensor] = []

    def spoil(runner: Trainer) -> None:
        nan_in_q_former(runner)
        projections.append(runner.model.llama_proj.weight.detach())

    spoil_at(2, spoil, lambda runner: projections.append(projections[0].clone()))
    code, stderr = run(run_entry, *stage1_options(scenes, tmp_path))
    assert code == 2
    assert late_figures == [0, 1]  # the third step had begun, and went no further
    assert "the loss is nan at epoch 0, step 2, rank 0" in one_line(stderr)
    assert "it starts in q_former.encoder.layer.1.output_query.dense" in one_line(stderr)
    assert torch.equal(projections[0], projections[1])
    assert projections[0].isfinite().all()


def test_what_is_known_late_changes_no_number(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest
):
    ends = []
    for folder in (tmp_path / "at once", tmp_path / "late"):
        assert run(run_entry, *stage1_options(scenes, folder, log_freq=2))[0] == 0
        saved = torch.load(only_run(folder) / "checkpoint_1.pth", weights_only=True)
        log = (only_run(folder) / "log.txt").read_text().splitlines()
        told = [[json.loads(row).get(name) for name in ("loss", "grad_norm")] for row in log]
        ends.append((saved["model"]["llama_proj.weight"], told))
        looked = request.getfixturevalue("late_figures")
    assert len(looked) == 6
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_skipping_leaves_the_step_out_and_counts(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    spoil_at: Callable[[int, Spoil, Spoil], None],
):
    spoil_at(2, nan_in_q_former, no_nan_in_q_former)
    options = stage1_options(scenes, tmp_path, on_nonfinite="skip", log_freq=1)
    assert run(run_entry, *options)[0] == 0
    folder = only_run(tmp_path)
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    steps = [row for row in rows if "step" in row]
    assert [row["loss"] is None for row in steps] == [False, True, False, False, False, False]
    assert [row.get("nonfinite_steps", 0) for row in steps] == [0, 1, 1, 1, 1, 1]
    assert rows[3]["train_loss"] == pytest.approx((rows[0]["loss"] + rows[2]["loss"]) / 2)
    saved = torch.load(folder / "checkpoint_1.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 5
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_skipping_ends_at_its_limit(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step_once = Trainer.train_step

    def spoilt(self: Trainer, epoch: int, index: int) -> None:
        nan_in_q_former(self)
        step_once(self, epoch, index)

    monkeypatch.setattr(Trainer, "train_step", spoilt)
    options = stage1_options(scenes, tmp_path, on_nonfinite="skip", max_nonfinite=2)
    code, stderr = run(run_entry, *options)
    assert code == 2
    assert "step number 3 that would be left out, more than run.max_nonfinite 2" in one_line(stderr)


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil_at: Callable[[int, Spoil, Spoil], None],
):
    handles: list[object] = []

    def spoil(runner: Trainer) -> None:
        weight = runner.model.llama_proj.weight
        handles.append(weight.register_hook(lambda gradient: gradient * torch.inf))

    def mend(runner: Trainer) -> None:
        handles.pop().remove()  # type: ignore[attr-defined]

    spoil_at(2, spoil, mend)
    code, stderr = run(run_entry, *stage1_options(scenes, tmp_path))
    assert code == 2
    assert "the gradient is not finite at epoch 0, step 2, rank 0" in one_line(stderr)
    assert "every output of the forward pass is finite" in one_line(stderr)


def test_a_picture_with_nan_is_named(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plugin = tmp_path / "spoils.py"
    plugin.write_text(
        "import torch\n"
        "from minigpt4.processors import ImageProcessor\n"
        "from minigpt4.registry import IMAGE_PROCESSORS\n"
        "plain = ImageProcessor(112)\n"
        "seen = []\n"
        "def process(image):\n"
        "    seen.append(1)\n"
        "    return plain(image) * (torch.nan if len(seen) == 7 else 1)\n"
        "@IMAGE_PROCESSORS.register('spoils')\n"
        "def build():\n"
        "    return process\n"
    )
    options = stage1_options(scenes, tmp_path / "out")
    for name in ("laion", "cc_sbu"):
        options.append(f"datasets.{name}.vis_processor.train={{name: spoils}}")
    yaml = Path(STAGE1).read_text().replace("        image_size: 112\n", "")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.replace("blip2_image_train", "spoils") + f"plugins: [{plugin}]\n")
    code, stderr = run(run_entry, *options[:-2], config=str(config))
    assert code == 2
    line = one_line(stderr)
    assert "the loss is nan at epoch 0, step 2" in line
    assert "it starts in the image processor" in line
    assert line.partition("samples: ")[2].count("tar/") == 1


def test_a_batch_without_a_target_is_an_error(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward_once = MiniGPT4.forward

    def wordless(self: MiniGPT4, image: object, rows: list[Row]) -> object:
        empty = [[Exchange(row[0].prompt, "")] for row in rows]
        return forward_once(self, image, empty)  # type: ignore[arg-type]

    monkeypatch.setattr(MiniGPT4, "forward", wordless)
    code, stderr = run(run_entry, *stage1_options(scenes, tmp_path))
    assert code == 2
    assert "no text of the batch has a token to learn" in one_line(stderr)


def test_the_gradient_norm_is_logged(run_entry: EntryPoint, scenes: Path, tmp_path: Path):
    assert run(run_entry, *stage1_options(scenes, tmp_path))[0] == 0
    rows = (only_run(tmp_path) / "log.txt").read_text().splitlines()
    assert json.loads(rows[0])["grad_norm"] > 0


def test_the_scalers_skipped_steps_are_counted_apart(
    run_entry: EntryPoint,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil_at: Callable[[int, Spoil, Spoil], None],
):
    """As under fp16, whose scaler tries a scale, meets Inf, and leaves the step out."""
    make = OptimizerStep.__init__

    def make_scaling(self: OptimizerStep, *args: Any) -> None:
        make(self, *args)
        self.scales_loss = True
        self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(OptimizerStep, "__init__", make_scaling)
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def spoil(runner: Trainer) -> None:
        weight = runner.model.llama_proj.weight
        handles.append(weight.register_hook(lambda gradient: gradient * torch.inf))

    spoil_at(2, spoil, lambda runner: handles.pop().remove())
    assert run(run_entry, *stage1_options(scenes, tmp_path, log_freq=1))[0] == 0
    folder = only_run(tmp_path)
    rows = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    steps = [row for row in rows if "step" in row]
    assert [row.get("scaler_skips", 0) for row in steps] == [0, 1, 1, 1, 1, 1]
    assert not any("nonfinite_steps" in row for row in steps)
    saved = torch.load(folder / "checkpoint_1.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 5
    assert saved["scaler"]["scale"] > 0
