"""Compiled layers: the same numbers, and no new graph for every number of tokens."""

import copy
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from minigpt4.chat import load_chat
from minigpt4.errors import ConfigError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.compiling import compile_layers
from tests.helpers.messages import one_line
from tests.helpers.repo import ROOT, TINY, tiny_assets

# Seven batches, each with another number of tokens.
CAPTIONS = [["x"] * (2 + n // 4) + ["ring" + " ring" * n] for n in range(7)]


@pytest.fixture(scope="module")
def model(projection: Path) -> MiniGPT4:
    return load_chat(ROOT / TINY, [f"model.ckpt={projection}", *tiny_assets()]).model


def gradient(model: MiniGPT4, captions: list[str]) -> torch.Tensor:
    model.zero_grad()
    drawn = torch.Generator().manual_seed(len(captions))
    model(
        torch.randn(len(captions), 3, 112, 112, generator=drawn), model.stage_rows(captions)
    ).backward()
    assert model.llama_proj.weight.grad is not None
    return model.llama_proj.weight.grad.clone()


@pytest.mark.slow
def test_seven_token_counts_need_two_graphs_of_a_layer_and_change_nothing(model: MiniGPT4) -> None:
    compiled = copy.deepcopy(model)
    for each in (model, compiled):
        each.choose_packing("on")
    compile_layers(compiled)
    towers_and_decoder = 3  # kinds of layers
    torch._dynamo.reset()
    counters.clear()
    tokens = set()
    for captions in CAPTIONS:
        difference = gradient(compiled, captions) - gradient(model, captions)
        tokens.add(compiled.batch_positions)
        assert difference.abs().max() < 1e-5 * gradient(model, captions).abs().max()
    assert len(tokens) == len(CAPTIONS)
    assert 0 < counters["stats"]["unique_graphs"] <= 2 * towers_and_decoder
    assert not counters["graph_break"]
    assert list(compiled.state_dict()) == list(model.state_dict())


def test_a_machine_without_a_compiler_is_told_so(
    model: MiniGPT4, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("g++: not found\nmore")

    monkeypatch.setattr(torch, "compile", fail)
    with one_line(ConfigError, "run.compile", "g++: not found more", "apt-get install g++"):
        compile_layers(copy.deepcopy(model))
