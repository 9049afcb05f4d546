"""Stages 1 and 2 of the tiny world: training each as a user does, and a chat with the result."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.errors import MiniGPT4Error
from minigpt4.tools.tiny_world.data_sets import VALIDATION

if TYPE_CHECKING:  # torch takes seconds to import; drawing scenes does without
    from minigpt4.chat import Chat

_EVAL_CONFIG = "eval_configs/tiny_eval.yaml"

logger = logging.getLogger(__name__)


def train_stage1(scenes: Path, output: Path, seed: int, options: Sequence[str] = ()) -> float:
    """Train stage 1 to ``output/stage1.pth``; return the seconds of wall time."""
    own = [
        *(f"datasets.{name}.build_info.storage={scenes}/{name}/" for name in ("laion", "cc_sbu")),
        *_validated("cc_sbu", scenes / VALIDATION / "captions", every=25),
    ]
    config = "train_configs/tiny_stage1_pretrain.yaml"
    return _train("stage1", config, output, [*own, f"run.seed={seed}", *options])


def train_stage2(scenes: Path, output: Path, seed: int, options: Sequence[str] = ()) -> float:
    """Train stage 2 to ``output/stage2.pth``; return the seconds of wall time."""
    own = [
        f"datasets.cc_sbu_align.build_info.storage={scenes}/cc_sbu_align/",
        *_validated("cc_sbu_align", scenes / VALIDATION / "descriptions", every=100),
        f"model.ckpt={output}/stage1.pth",
    ]
    config = "train_configs/tiny_stage2_finetune.yaml"
    return _train("stage2", config, output, [*own, f"run.seed={seed}", *options])


def _validated(data_set: str, held_out: Path, every: int) -> list[str]:
    """Return options that validate on held-out scenes, and with exchanged pictures."""
    return [
        "plugins=[minigpt4.tools.tiny_world.scoring]",  # metrics that know scenes
        f"datasets.{data_set}.build_info.val_storage={held_out}",
        f"run.eval_every_steps={every}",
        "run.valid_captions=30",
        "run.valid_splits=[val]",
        "run.valid_control=True",
        "run.metrics=[scene_pairs]",
        "run.batch_size_eval=50",
        "chat.max_new_tokens=60",
    ]


def _train(stage: str, config: str, output: Path, options: list[str]) -> float:
    runs = output / stage
    shutil.rmtree(runs, ignore_errors=True)
    options = [f"run.output_dir={runs}", *options]
    arguments = ["train.py", "--cfg-path", config, "--options", *options]
    logger.info("\n== %s: torchrun --nproc-per-node 1 %s", stage, " ".join(arguments))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    # torchrun leaves the number of threads open for one process; accelerate warns about that.
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), **os.environ}
    started = time.monotonic()
    status = subprocess.run([*launcher, "1", *arguments], check=False, env=environment).returncode
    seconds = time.monotonic() - started
    found = runs.glob("*/checkpoint_[0-9]*.pth")
    checkpoints = sorted(found, key=lambda file: int(file.stem.removeprefix("checkpoint_")))
    if status != 0 or not checkpoints:
        raise MiniGPT4Error(f"{stage} failed (exit code {status}); its own message stands above")
    shutil.copyfile(checkpoints[-1], output / f"{stage}.pth")
    return round(seconds, 1)


def run_of(output: Path, stage: str) -> Path:
    """The folder of a stage's run, of which there is one."""
    (folder,) = (output / stage).iterdir()
    return folder


def load_stage(stage: str, output: Path, seed: int) -> "Chat":
    """A chat with the projection of a stage; ``before`` is the untrained one."""
    import torch

    from minigpt4.chat import load_chat

    torch.manual_seed(seed)  # the untrained projection's init
    ckpt = "" if stage == "before" else f"{output}/{stage}.pth"
    return load_chat(_EVAL_CONFIG, [f"model.ckpt={ckpt}"])
