"""Pretraining of the tiny towers: a few steps of it, and what the committed ones know."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from assets.tiny.making.pretrain_language import text_ceiling
from assets.tiny.making.pretraining import optimise
from assets.tiny.making.towers import BARS
from minigpt4.chat import load_chat
from minigpt4.models.tokenizer import SentencePieceTokenizer
from minigpt4.tools.tiny_world import answers, scoring
from minigpt4.tools.tiny_world.data_sets import HELDOUT_SPLITS, read_heldout, write_data_sets
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT

TINY = ROOT / "assets" / "tiny"
TOWERS = ("eva_vit.pth", "q_former.pth", "llama/model.safetensors", "llama/tokenizer.model")


class Stopped(Exception):
    pass


def learn(progress: Path, steps: int, stop_at: int | None = None) -> nn.Module:
    """A small regression through ``optimise``; ``stop_at`` ends it there like a kill would."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))

    def loss_of(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Stopped
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(step))
        loss: torch.Tensor = model(x).square().mean()
        return loss

    optimise("test", model, model[0], steps, loss_of, progress, save_every=3)
    return model


def test_interrupted_pretraining_ends_with_the_same_weights(tmp_path: Path):
    whole = learn(tmp_path / "whole", steps=10)
    with pytest.raises(Stopped):
        learn(tmp_path / "cut", steps=10, stop_at=8)
    resumed = learn(tmp_path / "cut", steps=10)
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


def command(output: Path, **settings: int) -> list[str]:
    settings = {"visual_encoder_steps": 3, "q_former_steps": 3, "llama_steps": 3} | settings
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    start = [sys.executable, "-m", "assets.tiny.making", "--output", str(output)]
    return [*start, "--save-every=1", *options]


def processes_of(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


@pytest.mark.slow
def test_towers_survive_a_kill_and_load_like_full_size_weights(tmp_path: Path):
    """A few steps of each: the files must be the same and load; what they know is not the point."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = finished(command(whole))
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert "gates missed" in last, "three steps teach nothing"
    gates = json.loads((whole / "gates.json").read_text())
    assert set(BARS) <= set(gates)
    assert "llama step 3/3" in (whole / "towers.log").read_text()

    with subprocess.Popen(command(killed), cwd=ROOT, start_new_session=True) as running:
        while not (killed / "llama.progress").is_file() and running.poll() is None:
            time.sleep(0.05)
        running.kill()  # the parent alone: its workers must end by themselves
    while processes_of(running.pid):
        time.sleep(0.05)
    assert not (killed / "gates.json").exists()
    result = finished(command(killed))
    assert "llama: goes on from step" in result.stderr
    for file in TOWERS:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert (killed / "gates.json").read_text() == (whole / "gates.json").read_text()

    other = finished(command(whole, seed=5))
    assert other.returncode == 2
    assert "was begun with other settings" in other.stderr

    options = [
        "model.ckpt=",
        f"model.vit_model={whole}/eva_vit.pth",
        f"model.q_former_model={whole}/q_former.pth",
        f"model.llama_model={whole}/llama",
    ]
    chat = load_chat("eval_configs/tiny_eval.yaml", options)
    assert isinstance(chat.ask("What is this?", max_new_tokens=3), str)


@pytest.mark.slow
def test_committed_language_model_answers_about_text():
    """Measured again on the committed weights; the bars are those of the pretraining."""
    from transformers import AutoModelForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(TINY / "llama", dtype=torch.float32)
    tokenizer = SentencePieceTokenizer(TINY / "llama" / "tokenizer.model")
    for soft, name in ((False, "llama, plain notes: all"), (True, "llama, soft notes: all")):
        assert text_ceiling(llama, tokenizer, seed=17, soft=soft)["all"] >= BARS[name]


def test_committed_gates_reach_their_bars():
    gates = json.loads((TINY / "gates.json").read_text())
    for name, bar in BARS.items():
        assert gates[name] >= bar, name


@pytest.mark.parametrize("projection", ["zeros", "random"])
def test_without_stage_1_captions_are_at_chance(projection: str, tmp_path: Path):
    """The sides do not know each other: no projection but a trained one carries anything."""
    write_data_sets(tmp_path, seed=2, pairs=10, descriptions=2, heldout=40)
    torch.manual_seed(1)
    chat = load_chat("eval_configs/tiny_eval.yaml", ["model.ckpt="])
    if projection == "zeros":
        chat.model.llama_proj.weight.data.zero_()
        chat.model.llama_proj.bias.data.zero_()
    heldout = [pair for split in HELDOUT_SPLITS for pair in read_heldout(tmp_path / split)]
    split = answers.encode_split(chat, heldout)
    captions = answers.write_captions(chat, split.images)
    assert scoring.caption_figures(split.scenes, captions)["exact"] <= 0.03
