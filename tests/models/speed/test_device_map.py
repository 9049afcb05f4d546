"""The language model spread over several places: the same answers; refused where it is no use."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import train
from minigpt4.chat import load_chat
from minigpt4.models.speed.device_map import memory_for_layers
from tests.helpers.repo import TINY, EntryPoint


def test_answers_do_not_depend_on_where_layers_lie(
    scenes: Path, projection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    picture = scenes / "heldout_seen" / "image" / "0.jpg"
    options = [f"model.ckpt={projection}"]
    whole = load_chat(TINY, options)
    monkeypatch.setattr("minigpt4.models.speed.device_map.get_max_memory", lambda: {"cpu": 10**9})
    auto = load_chat(TINY, [*options, "model.device_map=auto"])
    # A machine without a second device: half of the layers lie on the disk, which is one too.
    layers = len(whole.model.llama_model.model.layers)  # type: ignore[arg-type]
    load = AutoModelForCausalLM.from_pretrained

    def spread(folder: str, **given: object):
        places = {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(layers)}
        rest = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
        given |= {"device_map": {**places, **rest, "lm_head": "cpu"}, "max_memory": None}
        return load(folder, offload_folder=str(tmp_path), **given)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spread)
    halves = load_chat(TINY, [*options, "model.device_map=auto"])
    weights = dict(halves.model.llama_model.named_parameters())
    assert {w.device.type for w in weights.values()} == {"cpu", "meta"}
    for chat in (auto, halves):
        session, other = whole.start(), chat.start()
        for question, images in (("What is this?", [picture]), ("How many?", [])):
            expected = whole.ask(question, images, session, max_new_tokens=12)
            assert chat.ask(question, images, other, max_new_tokens=12) == expected


def test_room_is_left_on_gpus(monkeypatch: pytest.MonkeyPatch):
    free: dict[int | str, int] = {0: 24 * 10**9, 1: 24 * 10**9, "cpu": 64 * 10**9}
    monkeypatch.setattr("minigpt4.models.speed.device_map.get_max_memory", lambda: dict(free))
    assert list(memory_for_layers(torch.device("cuda", 1)).items()) == [
        (1, 18 * 10**9),
        (0, 22 * 10**9),
        ("cpu", 64 * 10**9),
    ]
    assert memory_for_layers(torch.device("cpu")) == {"cpu": 64 * 10**9}


def test_a_training_refuses_it_in_one_line(run_entry: EntryPoint):
    config = "train_configs/tiny_stage2_finetune.yaml"
    code, told = run_entry(train.main, "--cfg-path", config, "--options", "model.device_map=auto")
    assert code == 2
    (line,) = [line for line in told.splitlines() if "device_map" in line]
    assert "model.device_map: auto is to chat with or evaluate; to train, run.shard" in line
