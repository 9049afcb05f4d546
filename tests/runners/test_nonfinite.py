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

from minigpt4.models.llm_input import Exchange, Row
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.nonfinite import PendingStep
from minigpt4.runners.optimizer import OptimizerStep
from minigpt4.runners.trainer import Trainer
from tests.helpers.repo import error_line
from tests.helpers.training import STAGE1, STAGE2, Trainings

Spoil = Callable[[Trainer], None]
SpoilAt = Callable[[int, Spoil, Spoil], None]


def failing(trainings: Trainings, **options: object) -> str:
    """The one line of an error with which a training ends."""
    code, stderr = trainings.run(*trainings.options("out", **options))
    assert code == 2
    return error_line(stderr)


@pytest.fixture
def spoil_at(monkeypatch: pytest.MonkeyPatch) -> SpoilAt:
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


def nan_in_q_former(runner: Trainer, value: float = torch.nan) -> None:
    assert runner.model.q_former is not None
    runner.model.q_former.encoder.layer[1].output_query.dense.bias.data[3] = value


def no_nan_in_q_former(runner: Trainer) -> None:
    nan_in_q_former(runner, 0.0)


class InfInGradient:
    """Makes the gradient of the projection infinite, and undoes it."""

    def spoil(self, runner: Trainer) -> None:
        weight = runner.model.llama_proj.weight
        self.handle = weight.register_hook(lambda gradient: gradient * torch.inf)

    def mend(self, runner: Trainer) -> None:
        self.handle.remove()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


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
def test_a_dead_language_model_is_told_before_the_first_step(trainings: Trainings, names: str):
    folder = dead_model(trainings.folder / "llama", names)
    code, stderr = trainings.run(*trainings.options(), f"model.llama_model={folder}")
    assert code == 2
    assert "the LLM or its inputs are dead: before the first step the loss is" in error_line(stderr)
    assert "model.llama_model" in error_line(stderr)
    assert not list(trainings.output().glob("*.pth"))


def test_a_model_with_nan_is_told_with_the_module(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
):
    train_once = Trainer.train

    def spoilt(self: Trainer) -> object:
        nan_in_q_former(self)
        return train_once(self)

    monkeypatch.setattr(Trainer, "train", spoilt)
    line = failing(trainings)
    assert "are dead: before the first step the loss is nan" in line
    assert "that of q_former.encoder.layer.1.output_query.dense." in line


def test_the_first_sample_is_shown_as_the_model_reads_it(
    trainings: Trainings, projection: Path, caplog: pytest.LogCaptureFixture
):
    options = [
        f"datasets.cc_sbu_align.build_info.storage={trainings.scenes}/cc_sbu_align",
        f"model.ckpt={projection}",
        f"run.output_dir={trainings.folder}",
        *("run.max_epoch=1", "run.iters_per_epoch=1", "run.num_workers=0"),
    ]
    with caplog.at_level("INFO"):
        assert trainings.run(*options, config=STAGE2)[0] == 0
    (text,) = [r.getMessage() for r in caplog.records if "what the model reads" in r.getMessage()]
    lines = text.splitlines()
    assert "<s>###Human: <Img>" in lines[1]
    assert lines[2].split() == [*lines[2].split()[:1], "the", "image"]
    assert "</Img>" in lines[3]
    assert "###Assistant: " in lines[3]
    assert "target: " in lines[4]
    assert "###" in lines[4]
    positions = [line.split()[0].split("-") for line in lines[1:]]
    assert all(int(a[-1]) + 1 == int(b[0]) for a, b in itertools.pairwise(positions))


def test_nan_in_a_step_ends_the_run_and_is_not_learnt(trainings: Trainings, spoil_at: SpoilAt):
    spoil_at(5, nan_in_q_former, no_nan_in_q_former)
    line = failing(trainings, save_every_steps=1)
    assert "the loss is nan at epoch 1, step 2, rank 0" in line
    assert "it starts in q_former.encoder.layer.1.output_query.dense" in line
    assert "00000.tar/" in line
    assert "run.on_nonfinite: skip" in line
    folder = trainings.output()
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
    trainings: Trainings, spoil_at: SpoilAt, late_figures: list[int]
):
    projections: list[torch.Tensor] = []

    def spoil(runner: Trainer) -> None:
        nan_in_q_former(runner)
        projections.append(runner.model.llama_proj.weight.detach())

    spoil_at(2, spoil, lambda runner: projections.append(projections[0].clone()))
    line = failing(trainings)
    assert late_figures == [0, 1]  # the third step had begun, and went no further
    assert "the loss is nan at epoch 0, step 2, rank 0" in line
    assert "it starts in q_former.encoder.layer.1.output_query.dense" in line
    assert torch.equal(projections[0], projections[1])
    assert projections[0].isfinite().all()


def test_what_is_known_late_changes_no_number(trainings: Trainings, request: pytest.FixtureRequest):
    ends = []
    for name in ("at once", "late"):
        assert trainings.run(*trainings.options(name, log_freq=2))[0] == 0
        folder = trainings.output(name)
        saved = torch.load(folder / "checkpoint_1.pth", weights_only=True)
        told = [[row.get(name) for name in ("loss", "grad_norm")] for row in log_of(folder)]
        ends.append((saved["model"]["llama_proj.weight"], told))
        looked = request.getfixturevalue("late_figures")
    assert len(looked) == 6
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_skipping_leaves_the_step_out_and_counts(trainings: Trainings, spoil_at: SpoilAt):
    spoil_at(2, nan_in_q_former, no_nan_in_q_former)
    assert trainings.run(*trainings.options(on_nonfinite="skip", log_freq=1))[0] == 0
    folder = trainings.output()
    rows = log_of(folder)
    steps = [row for row in rows if "step" in row]
    assert steps[0]["grad_norm"] > 0
    assert [row["loss"] is None for row in steps] == [False, True, False, False, False, False]
    assert [row.get("nonfinite_steps", 0) for row in steps] == [0, 1, 1, 1, 1, 1]
    assert rows[3]["train_loss"] == pytest.approx((rows[0]["loss"] + rows[2]["loss"]) / 2)
    saved = torch.load(folder / "checkpoint_1.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 5
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_skipping_ends_at_its_limit(trainings: Trainings, monkeypatch: pytest.MonkeyPatch):
    step_once = Trainer.train_step

    def spoilt(self: Trainer, epoch: int, index: int) -> None:
        nan_in_q_former(self)
        step_once(self, epoch, index)

    monkeypatch.setattr(Trainer, "train_step", spoilt)
    line = failing(trainings, on_nonfinite="skip", max_nonfinite=2)
    assert "step number 3 that would be left out, more than run.max_nonfinite 2" in line


def test_a_gradient_that_is_not_finite_is_told_from_a_loss(trainings: Trainings, spoil_at: SpoilAt):
    inf = InfInGradient()
    spoil_at(2, inf.spoil, inf.mend)
    line = failing(trainings)
    assert "the gradient is not finite at epoch 0, step 2, rank 0" in line
    assert "every output of the forward pass is finite" in line


def test_a_picture_with_nan_is_named(trainings: Trainings, tmp_path: Path):
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
    yaml = Path(STAGE1).read_text().replace("        image_size: 112\n", "")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.replace("blip2_image_train", "spoils") + f"plugins: [{plugin}]\n")
    code, stderr = trainings.run(*trainings.options(), config=config)
    assert code == 2
    line = error_line(stderr)
    assert "the loss is nan at epoch 0, step 2" in line
    assert "it starts in the image processor" in line
    assert line.partition("samples: ")[2].count("tar/") == 1


def test_a_batch_without_a_target_is_an_error(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
):
    forward_once = MiniGPT4.forward

    def wordless(self: MiniGPT4, image: object, rows: list[Row]) -> object:
        empty = [[Exchange(row[0].prompt, "")] for row in rows]
        return forward_once(self, image, empty)  # type: ignore[arg-type]

    monkeypatch.setattr(MiniGPT4, "forward", wordless)
    assert "no text of the batch has a token to learn" in failing(trainings)


def test_the_scalers_skipped_steps_are_counted_apart(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, spoil_at: SpoilAt
):
    """As under fp16, whose scaler tries a scale, meets Inf, and leaves the step out."""
    make = OptimizerStep.__init__

    def make_scaling(self: OptimizerStep, *args: Any) -> None:
        make(self, *args)
        self.scales_loss = True
        self.scaler = torch.amp.GradScaler("cpu")

    monkeypatch.setattr(OptimizerStep, "__init__", make_scaling)
    inf = InfInGradient()
    spoil_at(2, inf.spoil, inf.mend)
    assert trainings.run(*trainings.options(log_freq=1))[0] == 0
    folder = trainings.output()
    rows = log_of(folder)
    steps = [row for row in rows if "step" in row]
    assert [row.get("scaler_skips", 0) for row in steps] == [0, 1, 1, 1, 1, 1]
    assert not any("nonfinite_steps" in row for row in steps)
    saved = torch.load(folder / "checkpoint_1.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 5
    assert saved["scaler"]["scale"] > 0
