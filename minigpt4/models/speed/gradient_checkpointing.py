"""Gradient checkpointing: layers of the language model are computed again instead of kept.

For little memory: a frozen layer keeps some 32 numbers of its width for each token, this one; a
step takes about 1.4 times as long.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from minigpt4.errors import ConfigError
from minigpt4.models.language_model import decoder_layers
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.speed.packing import attending


def checkpoint_layers(model: MiniGPT4) -> None:
    """Keep only the inputs of every decoder layer for the backward pass, in place.

    transformers' own switch does nothing here: it asks for train mode, and what is frozen is
    always in eval mode.

    Raises:
        ConfigError: for a language model whose layers are not known.
    """
    layers = decoder_layers(model.llama_model)
    if not layers:
        kind = type(model.llama_model).__name__
        raise ConfigError(f"run.gradient_checkpointing: no layers known of a {kind}; leave it out")
    for layer in layers:
        _checkpoint(layer, model.llama_model)


def _checkpoint(layer: nn.Module, model: PreTrainedModel) -> None:
    compute = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        if torch.compiler.is_compiling():  # what is computed again is in the graph already
            return checkpoint(compute, *args, use_reentrant=False, **kwargs)
        implementation = model.config._attn_implementation

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # By the time of the backward pass a packed model attends as usual again.
            return nullcontext(), attending(model, implementation)

        return checkpoint(compute, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    layer.forward = forward  # type: ignore[method-assign]
