"""Compiling: every layer of the towers and of the language model becomes a few fused kernels.

Layer by layer: one graph serves all layers of a kind, whatever the number of tokens.
"""

import torch
from torch import nn

from minigpt4.errors import ConfigError, one_line
from minigpt4.models.language_model import decoder_layers
from minigpt4.models.minigpt4 import MiniGPT4


def compile_layers(model: MiniGPT4) -> None:
    """Compile a model in place; each layer is compiled when it first runs.

    Names of weights stay as they are.

    Raises:
        ConfigError: where this machine or this language model cannot be compiled.
    """
    _try_compiler(model.device)
    decoder = decoder_layers(model.llama_model)
    if not decoder:
        raise ConfigError(f"run.compile: no layers known of a {type(model.llama_model).__name__}")
    encoder = model.visual_encoder  # None where images come as cached features
    towers = [] if encoder is None else [*encoder.blocks]  # type: ignore[misc]
    if model.q_former is not None:
        towers += model.q_former.encoder.layer
    for layer in (*decoder, *towers):
        assert isinstance(layer, nn.Module)
        layer.compile(dynamic=True)


def _try_compiler(device: torch.device) -> None:
    """A kernel as small as can be: without a C++ compiler or Triton none can be made."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever the tools behind it raise
        raise ConfigError(
            f"run.compile: torch cannot compile here ({one_line(error, 150)}); install a C++ "
            "compiler (Debian: apt-get install g++), or leave it out"
        ) from error
