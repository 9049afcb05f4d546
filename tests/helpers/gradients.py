"""One training step of a model: its loss, its gradient and the bytes that it keeps."""

import torch
from torch import nn

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


def saved_bytes(model: nn.Module, embeds: torch.Tensor) -> int:
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
