"""Real jobs that are stopped, killed, lose a process or hang: nothing that was safe is lost."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.kill_resume import Figures, newest_step, one_run
from tests.helpers.processes import started
from tests.helpers.repo import ROOT
from tests.helpers.training import STAGE1, compare, only_run, stage1_options, training_command

WAIT = 240.0  # seconds; nothing here takes as long unless it hangs

# A task that goes wrong at one step of one rank, once: "kill", "hang" or "slow".
PLUGIN = """
import os, signal, time
from pathlib import Path
from minigpt4.registry import TASKS
from minigpt4.tasks import ImageTextPretrainTask

MARK = Path({mark!r})

@TASKS.register("goes_wrong")
class GoesWrong(ImageTextPretrainTask):
    def train_step(self, model, batch, step):
        if os.environ.get("RANK", "0") == "{rank}" and step == {step} and not MARK.exists():
            MARK.touch()
            if "{how}" == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600 if "{how}" == "hang" else 20)
        return super().train_step(model, batch, step)
"""


def until(true: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    """Wait while a job runs."""
    end = time.monotonic() + WAIT
    while not true():
        assert job.poll() is None, finish(job)
        assert time.monotonic() < end
        time.sleep(0.01)


def finish(job: subprocess.Popen[str]) -> str:
    """What a job says to its end."""
    return job.communicate(timeout=WAIT)[1]


def goes_wrong(folder: Path, how: str, rank: int, step: int) -> str:
    """A config whose training goes wrong once."""
    plugin = folder / f"{how}.py"
    mark = str(folder / f"{how}.done")
    plugin.write_text(PLUGIN.format(how=how, rank=rank, step=step, mark=mark))
    text = (ROOT / STAGE1).read_text().replace("image_text_pretrain", "goes_wrong")
    config = folder / f"{how}.yaml"
    config.write_text(text + f"plugins: [{plugin}]\n")
    return str(config)


def long_options(scenes: Path, output: Path, **more: object) -> list[str]:
    return stage1_options(
        scenes, output, **{"iters_per_epoch": 150, "save_every_steps": 2, "num_workers": 1} | more
    )


def model_at_end(output: Path) -> dict[str, torch.Tensor]:
    checkpoint = max(only_run(output).glob("checkpoint_*.pth"))
    return torch.load(checkpoint, weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 3), (2, 2)])
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path, processes: int, kills: int):
    figures = Figures(processes)
    one_run(figures, tmp_path, kills, seed=11)
    assert figures.differences == []
    assert [figures.kills, figures.survived, figures.equal] == [kills, kills, 1]


@pytest.mark.slow
def test_ctrl_c_with_readers_is_one_line(scenes: Path, tmp_path: Path):
    """Ctrl-C reaches the readers too: they must live until the step is done."""
    arguments = training_command(long_options(scenes, tmp_path), STAGE1, 0)
    with started(arguments) as job:
        until(lambda: newest_step(tmp_path) >= 4, job)
        os.killpg(job.pid, signal.SIGINT)
        stderr = finish(job)
    assert job.returncode == 130, stderr
    assert "Traceback" not in stderr
    (line,) = [x for x in stderr.splitlines() if "stopped by SIGINT after step" in x]
    step = int(line.partition("after step ")[2].partition(",")[0])
    assert newest_step(tmp_path) == step


@pytest.mark.slow
def test_a_second_signal_stops_at_once(scenes: Path, tmp_path: Path):
    config = goes_wrong(tmp_path, "slow", rank=0, step=3)
    with started(training_command(long_options(scenes, tmp_path / "out"), config, 0)) as job:
        until((tmp_path / "slow.done").exists, job)
        job.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert job.poll() is None, "the first signal waits for the step"
        job.send_signal(signal.SIGTERM)
        finish(job)
    assert job.returncode == 143
    assert newest_step(tmp_path / "out") == 2


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_another_run_goes_on(scenes: Path, tmp_path: Path):
    short = {"iters_per_epoch": 20, "save_every_steps": 1000, "deterministic": True}
    alone = long_options(scenes, tmp_path / "alone", **short)
    with started(training_command(alone, STAGE1, 2)) as job:
        finish(job)
    options = long_options(scenes, tmp_path / "cut", **short, resume="auto", log_freq=1)
    with started(training_command(options, STAGE1, 2)) as job:
        until(lambda: any((tmp_path / "cut").glob("*/log.txt")), job)
        job.send_signal(signal.SIGTERM)
        stderr = finish(job)
    assert stderr.count("stopped by SIGTERM after step") == 1, stderr
    assert 0 < newest_step(tmp_path / "cut") < 40
    with started(training_command(options, STAGE1, 2)) as job:
        assert "going on after step" in finish(job)
    one, other = model_at_end(tmp_path / "cut"), model_at_end(tmp_path / "alone")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_torchrun_restarts_a_rank_that_died_and_nothing_differs(scenes: Path, tmp_path: Path):
    short = {"iters_per_epoch": 6, "save_every_steps": 2}
    for name, died in (("died", False), ("alone", True)):
        config = goes_wrong(tmp_path, "kill", rank=1, step=7)
        if died:
            (tmp_path / "kill.done").touch()
        options = long_options(scenes, tmp_path / name, **short)
        launcher = ("--standalone", "--max-restarts", "1")
        with started(training_command(options, config, 2, *launcher)) as job:
            stderr = finish(job)
        assert job.returncode == 0, stderr
        if name == "died":
            assert "rank 1 died or hangs" in stderr
            assert "going on after step 6" in stderr
    assert compare(tmp_path / "died", tmp_path / "alone") == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_lost_rank_is_named_and_the_others_stop(scenes: Path, tmp_path: Path, how: str):
    config = goes_wrong(tmp_path, how, rank=1, step=3)
    options = long_options(scenes, tmp_path / "out", timeout=10)
    with started(training_command(options, config, 2)) as job:
        stderr = finish(job)
    assert job.returncode != 0
    assert "error: rank 1 died or hangs" in stderr or "error: rank 0: rank 1 died" in stderr, stderr
    assert newest_step(tmp_path / "out") == 2


@pytest.mark.slow
def test_a_number_that_one_rank_meets_is_told_with_its_rank(scenes: Path, tmp_path: Path):
    plugin = tmp_path / "spoils.py"
    plugin.write_text(
        "import os, torch\n"
        "from minigpt4.registry import TASKS\n"
        "from minigpt4.tasks import ImageTextPretrainTask\n"
        "@TASKS.register('goes_wrong')\n"
        "class Spoils(ImageTextPretrainTask):\n"
        "    def train_step(self, model, batch, step):\n"
        "        if os.environ['RANK'] == '1' and step == 2:\n"
        "            batch['image'][3] = torch.nan\n"
        "        return super().train_step(model, batch, step)\n"
    )
    text = (ROOT / STAGE1).read_text().replace("image_text_pretrain", "goes_wrong")
    config = tmp_path / "run.yaml"
    config.write_text(text + f"plugins: [{plugin}]\n")
    with started(training_command(long_options(scenes, tmp_path / "out"), str(config), 2)) as job:
        stderr = finish(job)
    assert "error: the loss is nan at epoch 0, step 3, rank 1; it starts in the image" in stderr
    assert newest_step(tmp_path / "out") == 2


@pytest.mark.slow
def test_two_nodes_with_a_rendezvous(scenes: Path, tmp_path: Path):
    """Two launchers, as on two machines, equal one launcher with two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "7")
    where = (*rendezvous, "--rdzv-endpoint", f"127.0.0.1:{port}")
    short = {"iters_per_epoch": 5}
    nodes = training_command(long_options(scenes, tmp_path / "nodes", **short), STAGE1, 1, *where)
    with started(nodes) as one, started(nodes) as other:
        said = [finish(one), finish(other)]
    assert [one.returncode, other.returncode] == [0, 0], said
    assert sum(text.count("what is trained") for text in said) == 1
    alone = long_options(scenes, tmp_path / "one", **short)
    with started(training_command(alone, STAGE1, 2)) as job:
        finish(job)
    assert compare(tmp_path / "nodes", tmp_path / "one") == []
    rows = (only_run(tmp_path / "one") / "log.txt").read_text().splitlines()
    assert json.loads(rows[-1])["epoch"] == 1
