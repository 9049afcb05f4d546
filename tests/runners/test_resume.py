"""A run that was interrupted ends as one that was not: in process, at chosen steps."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from minigpt4.runners.resuming import RandomState
from minigpt4.runners.run_folder import is_whole, load_state
from tests.helpers.training import STAGE1, Stop, Trainings, compare, equal


class Interrupted(Trainings):
    """Trainings of two epochs that are stopped, each resumed in the same folder."""

    def options(self, name: str = "out", **run: object) -> list[str]:
        settings = {"iters_per_epoch": 6, "log_freq": 4, "warmup_steps": 2} | run
        return super().options(name, **settings)

    def compare(self) -> list[str]:
        return compare(self.folder / "cut", self.folder / "alone")


@pytest.fixture
def runs(trainings: Trainings) -> Interrupted:
    return Interrupted(trainings.entry, trainings.scenes, trainings.folder)


@pytest.fixture
def alone(runs: Interrupted) -> Path:
    assert runs.run(*runs.options("alone"))[0] == 0
    return runs.output("alone")


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(1, signal.SIGTERM, 143), (4, signal.SIGINT, 130), (6, signal.SIGTERM, 143)],
)
def test_a_signal_ends_after_the_step_and_auto_goes_on_to_the_same_end(
    runs: Interrupted, alone: Path, stop_after: Stop, step: int, number: int, code: int
):
    options = runs.options("cut")
    stop_after(step, number)
    found, stderr = runs.run(*options)
    assert found == code
    (line,) = [x for x in stderr.splitlines() if "stopped by" in x]
    assert f"stopped by {signal.Signals(number).name} after step {step}, which is saved" in line
    assert "run.resume=auto" in line
    assert runs.run(*options, "run.resume=auto")[0] == 0
    assert runs.compare() == []


@pytest.mark.parametrize(
    "lever",
    [
        "packing=off",
        "gradient_checkpointing=True",
        pytest.param("compile=True", marks=pytest.mark.slow),
    ],
)
def test_no_lever_stands_in_the_way_of_going_on(runs: Interrupted, stop_after: Stop, lever: str):
    whole, cut = ([*runs.options(name), f"run.{lever}"] for name in ("alone", "cut"))
    assert runs.run(*whole)[0] == 0
    stop_after(4, signal.SIGTERM)
    assert runs.run(*cut)[0] == 143
    assert runs.run(*cut, "run.resume=auto")[0] == 0
    assert runs.compare() == []


def test_micro_batches_of_one_optimizer_step_are_not_torn_apart(
    runs: Interrupted, stop_after: Stop
):
    # 6 steps an epoch do not fill optimizer steps of 4: the rest of an epoch's gradient stays.
    accumulated = {"accum_grad_iters": 4, "max_grad_norm": 1.0}
    whole = runs.options("alone", **accumulated)
    assert runs.run(*whole)[0] == 0
    options = runs.options("cut", **accumulated)
    stop_after(2, signal.SIGTERM)
    assert "after step 4, which" in runs.run(*options)[1]
    stop_after(5, signal.SIGTERM)
    assert "after step 6, which" in runs.run(*options, "run.resume=auto")[1]
    assert runs.run(*options, "run.resume=auto")[0] == 0
    assert runs.compare() == []


def test_more_trained_parts_and_random_transforms_go_on_as_they_were(
    runs: Interrupted, stop_after: Stop
):
    """LoRA's dropout draws from torch, a plug-in's transform from python and numpy."""
    pytest.importorskip("peft")
    plugin = runs.folder / "noisy.py"
    plugin.write_text(
        "import random, numpy, torch\n"
        "from minigpt4.processors import ImageProcessor\n"
        "from minigpt4.registry import IMAGE_PROCESSORS\n"
        "plain = ImageProcessor(112)\n"
        "def process(image):\n"
        "    drawn = random.random() + numpy.random.rand() + torch.rand(())\n"
        "    return plain(image) * (1 + drawn / 10)\n"
        "@IMAGE_PROCESSORS.register('noisy')\n"
        "def build():\n"
        "    return process\n"
    )
    yaml = Path(STAGE1).read_text().replace("        image_size: 112\n", "")
    config = runs.folder / "run.yaml"
    config.write_text(yaml.replace("blip2_image_train", "noisy") + f"plugins: [{plugin}]\n")
    more = "model.trainable=[llama_proj,q_former,ln_vision,lora]"

    def noisy(name: str, *options: str) -> int:
        given = [*runs.options(name, num_workers=1), more, *options]
        return runs.run(*given, config=config)[0]

    assert noisy("alone") == 0
    stop_after(4, signal.SIGTERM)
    assert noisy("cut") == 143
    assert noisy("cut", "run.resume=auto") == 0
    assert runs.compare() == []
    saved = torch.load(runs.output("cut") / "checkpoint_1.pth", weights_only=True)["model"]
    parts = {name.split(".")[0] for name in saved}
    assert parts == {"llama_proj", "q_former", "query_tokens", "ln_vision", "llama_model"}


def test_without_auto_a_run_starts_anew(runs: Interrupted, stop_after: Stop):
    options = runs.options()
    stop_after(2, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    stop_after(3, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    assert len(list((runs.folder / "out").iterdir())) == 2


def test_auto_takes_no_finished_run_and_none_of_another_config(
    runs: Interrupted, alone: Path, stop_after: Stop
):
    options, folder = runs.options("alone"), alone.parent
    assert runs.run(*options, "run.resume=auto")[0] == 0
    assert len(list(folder.iterdir())) == 2, "the finished one is left alone"
    stop_after(2, signal.SIGTERM)
    assert runs.run(*options, "run.resume=auto", "run.seed=5")[0] == 143
    assert len(list(folder.iterdir())) == 3
    stop_after(3, signal.SIGTERM)
    assert runs.run(*options, "run.resume=auto", "run.seed=6")[0] == 143
    assert len(list(folder.iterdir())) == 4


def test_a_damaged_state_is_told_and_the_one_before_is_used(
    runs: Interrupted, alone: Path, stop_after: Stop, caplog: pytest.LogCaptureFixture
):
    options = runs.options("cut", save_every_steps=1, keep_last=3)
    stop_after(5, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    states = {file.name: file for file in runs.output("cut").glob("state_*")}
    assert set(states) == {"state_3.pth", "state_4.pth", "state_5.pth"}
    states["state_5.pth"].write_bytes(states["state_5.pth"].read_bytes()[:-3000])
    content = bytearray(states["state_4.pth"].read_bytes())
    content[len(content) // 3] ^= 1
    states["state_4.pth"].write_bytes(content)
    caplog.clear()
    assert runs.run(*options, "run.resume=auto")[0] == 0
    told = [r.getMessage() for r in caplog.records if "the one before is used" in r.getMessage()]
    assert ["state_5.pth" in told[0], "state_4.pth" in told[1], len(told)] == [True, True, 2]
    assert runs.compare() == []


def test_a_run_killed_before_its_first_save_starts_anew_in_its_folder(
    runs: Interrupted, alone: Path, stop_after: Stop
):
    options = runs.options("cut")
    stop_after(3, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    for file in runs.output("cut").glob("state_*"):
        file.unlink()
    assert runs.run(*options, "run.resume=auto")[0] == 0
    assert runs.compare() == []


def test_a_named_folder_goes_on_and_a_named_state_branches_off(
    runs: Interrupted, alone: Path, stop_after: Stop
):
    options = runs.options("cut")
    stop_after(4, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    cut = runs.output("cut")
    branch = runs.options("branch")
    state = f"run.resume_ckpt_path={cut}/state_4.pth"
    assert runs.run(*branch, state)[0] == 0
    assert runs.run(*options, f"run.resume_ckpt_path={cut}")[0] == 0
    assert runs.compare() == []
    ends = [runs.output(name) / "checkpoint_1.pth" for name in ("branch", "alone")]
    one, other = (torch.load(end, weights_only=True) for end in ends)
    assert equal(one["model"], other["model"])


def test_a_run_that_is_being_worked_on_is_not_taken(runs: Interrupted, stop_after: Stop):
    from minigpt4.runners.run_folder import RunFolder

    options = runs.options()
    stop_after(2, signal.SIGTERM)
    assert runs.run(*options)[0] == 143
    busy = RunFolder(runs.output())
    assert busy.lock()
    stop_after(3, signal.SIGTERM)
    code, stderr = runs.run(*options, f"run.resume_ckpt_path={busy.path}")
    assert code == 2
    assert "another process works on this run" in stderr
    assert runs.run(*options, "run.resume=auto")[0] == 143
    assert len(list((runs.folder / "out").iterdir())) == 2


def test_a_state_is_small_and_the_last_ones_are_kept(runs: Interrupted):
    options = runs.options(save_every_steps=1, keep_last=2, num_workers=3)
    assert runs.run(*options)[0] == 0
    states = sorted(runs.output().glob("state_*.pth"))
    assert [file.name for file in states] == ["state_11.pth", "state_12.pth"]
    projection = 4 * (160 * 128 + 160)
    assert states[0].stat().st_size < 3 * projection + 1e6


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_file_that_is_no_state_is_one_line(runs: Interrupted, content: bytes | None):
    file = runs.folder / "state_3.pth"
    if content is None:
        torch.save({"model": {}}, file)
    else:
        file.write_bytes(content)
    options = runs.options(resume_ckpt_path=file)
    code, stderr = runs.run(*options)
    assert code == 2
    assert "state_3.pth" in stderr
    assert "Traceback" not in stderr


def test_the_state_of_an_optimizer_that_is_not_fused_is_taken_up(runs: Interrupted, alone: Path):
    """As the original's checkpoints hold it, and ours did once."""
    state = torch.load(alone / "checkpoint_0.pth", weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        del group["fused"]
    torch.save(state, runs.folder / "checkpoint_0.pth")
    options = runs.options("on", resume_ckpt_path=runs.folder / "checkpoint_0.pth")
    assert runs.run(*options)[0] == 0
    saved = torch.load(runs.output("on") / "checkpoint_1.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["step"] == 12
    assert saved["optimizer"]["param_groups"][0]["fused"]


def test_random_generators_are_put_back():
    def draw() -> list[Any]:
        return [random.random(), numpy.random.rand(), numpy.random.randn(), torch.rand(2).tolist()]

    draw()
    generators = RandomState(torch.device("cpu"))
    state = generators.state()
    numpy.random.randn()  # leaves half of a pair behind
    odd = generators.state()
    first, of_odd = draw(), None
    generators.restore(odd)
    of_odd = draw()
    generators.restore(state)
    numpy.random.randn()
    assert draw() == first == of_odd


def test_the_state_is_read_without_running_code(runs: Interrupted, alone: Path):
    file = alone / "state_12.pth"
    assert is_whole(file)
    state = load_state(file)
    assert state["step"] == 12
    assert json.dumps(state["ranks"][0]["data"])
