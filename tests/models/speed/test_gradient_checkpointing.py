"""Gradient checkpointing: the same numbers with fewer bytes kept."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.errors import ConfigError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.compiling import compile_layers
from minigpt4.models.speed.gradient_checkpointing import checkpoint_layers
from tests.helpers.gradients import PROMPTS, learn, saved_bytes
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model, one_case

WIDTH, TOKENS = 128, 64


@pytest.fixture
def model() -> MiniGPT4:
    return build_model(one_case(first_release=False))


@pytest.fixture
def image() -> torch.Tensor:
    size = one_case(first_release=False).facts["dims"]["vit"]["img_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradient_stay_as_they_are(
    model: MiniGPT4, image: torch.Tensor, packed: bool
) -> None:
    model.train()
    expected = learn(model, image, PROMPTS, packed)
    checkpoint_layers(model)
    found = learn(model, image, PROMPTS, packed)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


@pytest.mark.slow
def test_it_goes_together_with_compiling(model: MiniGPT4, image: torch.Tensor) -> None:
    model.train()
    expected = learn(model, image, PROMPTS, packed=True)
    checkpoint_layers(model)
    compile_layers(model)
    found = learn(model, image, PROMPTS, packed=True)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert (found[1] - expected[1]).abs().max() < 1e-5 * expected[1].abs().max()


def test_a_layer_keeps_its_input_alone(model: MiniGPT4) -> None:
    kept = []
    for layers in (2, 4):
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
        )
        llama = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False).eval()
        small = copy.copy(model)
        small.__dict__["_modules"] = {**model._modules, "llama_model": llama}
        checkpoint_layers(small)
        embeds = torch.randn(1, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        kept.append(saved_bytes(llama.model, embeds))
    assert (kept[1] - kept[0]) / (2 * TOKENS * WIDTH) <= 2.1  # two bytes each, and little more


def test_a_language_model_without_known_layers_is_one_line(
    model: MiniGPT4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.llama_model, "_no_split_modules", [])
    with one_line(ConfigError, "run.gradient_checkpointing", "leave it out"):
        checkpoint_layers(model)
