"""Sharding: the frozen language model, spread over the processes of a training.

For a language model that one GPU does not hold. Each process still reads all of it into its main
memory, and then gives its share to its device, layer by layer.
"""

import logging

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from minigpt4.errors import ConfigError
from minigpt4.models.language_model import decoder_layers
from minigpt4.models.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)


def has_several_processes() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


def shard_language_model(model: MiniGPT4, device: torch.device) -> None:
    """Spread each decoder layer's frozen weights over all processes; move the rest to ``device``.

    A layer is gathered when it runs, forward and backward. From then on all processes must run it
    equally often. What is trained, LoRA too, stays whole in every process.

    Args:
        model: On the CPU, or on ``device``; one that is sharded already is left as it is.
        device: Of this process.

    Raises:
        ConfigError: for a language model whose layers transformers does not name.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    if not has_several_processes():
        logger.info("run.shard: fsdp: there is one process, so nothing is shared out")
        model.to(device)
        return
    language_model = model.llama_model
    decoder = language_model.get_decoder()
    layers = decoder_layers(language_model)
    if not layers:
        raise ConfigError(f"run.shard: fsdp cannot split a {type(language_model).__name__}")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    trained = {p for p in language_model.parameters() if p.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    # The embedding is called outside of any forward, and the head may be: both stay whole, 4 % of
    # a 7B model. The decoder shares out nothing more, it lets a layer be gathered ahead.
    fully_shard(decoder, mesh=mesh, ignored_params=set(_whole(decoder)))
    # transformers' generate asks for this, and then lets no process stop before the others.
    language_model._is_fsdp_managed_module = True
    model.to(device)


def _whole(decoder: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in decoder.parameters() if not isinstance(parameter, DTensor)]
