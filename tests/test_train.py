"""The main job on real files: train.py alone and under torchrun."""

import json
from pathlib import Path

import pytest
import torch

from minigpt4.config import load_config
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.registry import BUILDERS, MODELS, TASKS
from tests.helpers.training import STAGE1, STAGE2, only_run, stage1_options, train


def test_stage1_then_stage2_in_plain_python(scenes: Path, tmp_path: Path):
    first = train(*stage1_options(scenes, tmp_path / "one"))
    assert first.returncode == 0, first.stderr
    run = only_run(tmp_path / "one")
    assert {file.name for file in run.iterdir()} == {
        "config.yaml",
        "environment.json",
        "log.txt",
        "checkpoint_0.pth",
        "checkpoint_1.pth",
        "state_3.pth",
        "state_6.pth",
    }
    checkpoint = torch.load(run / "checkpoint_1.pth", weights_only=True)
    assert set(checkpoint) == {"model", "optimizer", "config", "scaler", "epoch"}
    assert {k: tuple(v.shape) for k, v in checkpoint["model"].items()} == {
        "llama_proj.weight": (160, 128),
        "llama_proj.bias": (160,),
    }
    assert checkpoint["epoch"] == 1
    lines = [json.loads(line) for line in (run / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1]
    assert {"loss", "lr", "samples_per_second", "step"} <= set(lines[0])
    assert {"train_loss", "train_lr"} <= set(lines[1])
    assert "llama_proj      trained" in first.stderr
    assert "llama_model     frozen" in first.stderr
    assert load_config(run / "config.yaml").run["iters_per_epoch"] == 3

    second = train(
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/",
        f"model.ckpt={run}/checkpoint_1.pth",
        f"run.output_dir={tmp_path}/two",
        "run.max_epoch=1",
        "run.iters_per_epoch=null",
        "run.num_workers=1",
        config=STAGE2,
    )
    assert second.returncode == 0, second.stderr
    assert f"projection loaded from {run}/checkpoint_1.pth" in second.stderr
    lines = [
        json.loads(x) for x in (only_run(tmp_path / "two") / "log.txt").read_text().splitlines()
    ]
    assert lines[0]["step"] == 2  # 24 pairs in batches of 12: once through


@pytest.mark.slow
@pytest.mark.parametrize("config", [STAGE1, STAGE2])
def test_two_processes_equal_one_that_accumulates_their_batches(
    scenes: Path, tmp_path: Path, projection: Path, config: str
):
    """The gradient of two ranks is the mean of their batches' gradients, each a mean of its own."""
    options = [
        f"run.output_dir={tmp_path}/two",
        f"model.ckpt={projection}",
        *("run.max_epoch=1", "run.iters_per_epoch=1", "run.warmup_steps=0", "run.seed=5"),
        *("run.batch_size_train=4", "run.num_workers=0"),
    ]
    names = ("laion", "cc_sbu") if config == STAGE1 else ("cc_sbu_align",)
    options += [f"datasets.{name}.build_info.storage={scenes}/{name}/" for name in names]
    result = train(*options, config=config, processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("what is trained") == 1, "only the main process speaks"
    run = only_run(tmp_path / "two")
    assert len(list(run.glob("checkpoint_*"))) == 1

    loaded = load_config(config, options)
    model = MODELS.build(loaded.arch, loaded.model_options(), device=torch.device("cpu"))
    datasets = [BUILDERS.build(name, entry, name=name) for name, entry in loaded.datasets.items()]
    losses, keys = [], []
    for rank in range(2):
        batch = next(iter(MixedLoader(datasets, 4, 0, seed=5, rank=rank, world_size=2)))
        task = TASKS.build("image_text_pretrain", {}, prompts=model.prompts, seed=5, rank=rank)
        loss = task.train_step(model, batch, 0)
        (loss / 2).backward()
        losses.append(loss.item())
        keys += batch["keys"]
    assert keys[:4] != keys[4:], "each rank reads in an order of its own"
    # After the first step AdamW's first moment is a tenth of the gradient.
    state = torch.load(run / "checkpoint_0.pth", weights_only=True)["optimizer"]["state"]
    for number, parameter in enumerate((model.llama_proj.weight, model.llama_proj.bias)):
        assert parameter.grad is not None
        error = (state[number]["exp_avg"] / 0.1 - parameter.grad).abs().max()
        assert error < 1e-6 * parameter.grad.abs().max()
    logged = json.loads((run / "log.txt").read_text().splitlines()[0])
    assert logged["loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_a_users_mistake_is_one_line_and_exit_code_2(scenes: Path, tmp_path: Path):
    result = train(*stage1_options(scenes, tmp_path), "run.max_epcoh=3")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        f"error: {STAGE1}: run.max_epcoh: unknown key; did you mean 'max_epoch'?"
    ]


@pytest.mark.slow
def test_under_torchrun_the_line_appears_once(scenes: Path, tmp_path: Path):
    result = train(*stage1_options(scenes, tmp_path), "run.max_epcoh=3", processes=2)
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1
    assert "did you mean 'max_epoch'?" in result.stderr


@pytest.mark.slow
def test_a_fault_that_a_rank_meets_alone_is_told(scenes: Path, tmp_path: Path):
    """A rank that dies takes the others with it: it cannot leave the telling to rank 0."""
    plugin = tmp_path / "broken_for_one.py"
    plugin.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from typing import Annotated\n"
        "from minigpt4.datasets.samples import BadSample, DataSet, RawSample\n"
        "from minigpt4.processors import ImageProcessor\n"
        "from minigpt4.registry import BUILDERS, Hidden\n"
        "class Source:\n"
        "    units, window = 8, 1\n"
        "    def read(self, unit):\n"
        "        bad = os.environ['RANK'] == '1'\n"
        f"        file = Path({str(scenes)!r}) / 'heldout_seen/image/0.jpg'\n"
        "        key = str(unit)\n"
        "        yield BadSample(key, 'broken') if bad else RawSample(key, file, 'a')\n"
        "@BUILDERS.register('half_broken')\n"
        "def build(name: Annotated[str, Hidden]) -> DataSet:\n"
        "    return DataSet(name, Source(), ImageProcessor(112), str)\n"
    )
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {arch: minigpt4, model_type: tiny}\n"
        "datasets: {half_broken: {}}\n"
        f"plugins: [{plugin}]\n"
        "run: {init_lr: 0.01, min_lr: 0.001, max_epoch: 1, iters_per_epoch: 2, num_workers: 0,"
        f" batch_size_train: 2, output_dir: {tmp_path}/out}}\n"
    )
    result = train("run.seed=1", config=str(config), processes=2)
    assert result.returncode != 0
    assert "error: rank 1: datasets.half_broken: no readable sample" in result.stderr


@pytest.mark.gpu
def test_trains_on_a_gpu_in_half_precision(scenes: Path, tmp_path: Path):
    result = train(*stage1_options(scenes, tmp_path, device="cuda"), processes=1)
    assert result.returncode == 0, result.stderr
    assert "bfloat16" in result.stderr or "float16" in result.stderr
