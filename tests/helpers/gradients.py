"""One training step of a model: its loss, its gradient and the bytes that it keeps."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.models.minigpt4 import MiniGPT4

TEXTS = ["a red circle", "two big green squares and a small ring at the left", "x"]


PROMPTS = [
    "###Human: <Img><ImageHere></Img> Describe this. ###Assistant: ",
    "###Human: <Img><ImageHere></Img> What is it? ###Assistant: ",
    "###Human: <Img><ImageHere></Img> Take your time and describe it well. ###Assistant: ",
]


def learn(
    model: MiniGPT4, image: torch.Tensor | None, prompts: list[str] | None, packed: bool
) -> tuple[float, torch.Tensor]:
    """Loss and the projection's gradient."""
    model.packed = packed
    model.zero_grad()
    loss = model(image, model.stage_rows(TEXTS, prompts))
    loss.backward()
    gradient = model.llama_proj.weight.grad
    assert gradient is not None
    return loss.item(), gradient.clone()


def numbers_kept_by_a_layer(prepare: Callable[[LlamaForCausalLM], None]) -> float:
    """Numbers that a frozen layer in bf16 keeps for the backward: for each token, over its width.

    The language model is prepared first, in place.
    """
    width, tokens, kept = 256, 64, []
    for layers in (2, 4):
        config = LlamaConfig(
            vocab_size=50,
            hidden_size=width,
            intermediate_size=int(width * 2.6875),  # as LLaMA-7B has it
            num_hidden_layers=layers,
            num_attention_heads=2,
        )
        llama = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False).eval()
        prepare(llama)
        embeds = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        kept.append(_saved_bytes(llama.model, embeds))
    return (kept[1] - kept[0]) / (2 * tokens * width)  # of two bytes each


def _saved_bytes(model: nn.Module, embeds: torch.Tensor) -> int:
    """Bytes that a forward keeps for the backward, weights not counted."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(kept.values())
