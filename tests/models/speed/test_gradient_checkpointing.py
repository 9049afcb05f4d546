"""Gradient checkpointing: the same numbers with fewer bytes kept."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from minigpt4.errors import ConfigError
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.compiling import compile_layers
from minigpt4.models.speed.gradient_checkpointing import checkpoint_layers
from tests.helpers.gradients import PROMPTS, learn, numbers_kept_by_a_layer
from tests.helpers.messages import one_line
from tests.helpers.recorded.model import build_model, one_case


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
    def checkpointed(llama: LlamaForCausalLM) -> None:
        small = copy.copy(model)
        small.__dict__["_modules"] = {**model._modules, "llama_model": llama}
        checkpoint_layers(small)

    assert numbers_kept_by_a_layer(checkpointed) <= 2.1


def test_a_language_model_without_known_layers_is_one_line(
    model: MiniGPT4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.llama_model, "_no_split_modules", [])
    with one_line(ConfigError, "run.gradient_checkpointing", "leave it out"):
        checkpoint_layers(model)
