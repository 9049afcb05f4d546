"""Conversion of weights files: ``.pth``, ``.pt`` and ``.bin`` to safetensors, and back."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from minigpt4.errors import CheckpointError, MiniGPT4Error
from minigpt4.files import write_atomically
from minigpt4.weights.checkpoint import load_weights, save_atomically
from minigpt4.weights.names import Tensors, trained_part

PICKLED = (".pth", ".pt", ".bin")
SAFE = ".safetensors"

logger = logging.getLogger(__name__)


def convert_file(source: Path, target: Path) -> None:
    """Write ``target``, whole or not at all; log what it cannot hold."""
    to_safe = _direction(source, target)
    if target.exists():
        raise MiniGPT4Error(f"{target}: exists already; nothing is overwritten")
    tensors, dropped = _tensors_of(load_weights(source), str(source))
    if to_safe:
        content = save(_apart(tensors, str(source)))
        write_atomically(target, lambda file: file.write(content))
    else:
        # Checkpoints and BLIP-2's file have a "model" part; others have tensors at the top.
        is_ours = any(map(trained_part, tensors))
        save_atomically({"model": tensors} if is_ours else dict(tensors), target)
    logger.info("%s: %d tensors", target, len(tensors))
    if dropped:
        logger.info("left out, being no weights: %s", ", ".join(dropped))


def _direction(source: Path, target: Path) -> bool:
    """Whether to write safetensors."""
    for path in (source, target):
        if path.suffix not in (*PICKLED, SAFE):
            raise MiniGPT4Error(
                f"{path}: the suffix must be one of {', '.join((*PICKLED, SAFE))}"
                + (" (a folder: name a file)" if path.is_dir() else "")
            )
    if (source.suffix == SAFE) == (target.suffix == SAFE):
        raise MiniGPT4Error(f"{source} and {target}: exactly one of them must end in {SAFE}")
    return target.suffix == SAFE


def _tensors_of(content: Any, origin: str) -> tuple[Tensors, list[str]]:
    """Return a file's weights, its ``"model"`` part or all of it, and the names of the rest."""
    top = content if isinstance(content, dict) else {}
    inner = top.get("model")
    weights = inner if isinstance(inner, dict) else top
    tensors = {
        name: value
        for name, value in weights.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{origin}: not a checkpoint (no tensors with names in it)")
    dropped = [str(name) for name in weights if name not in tensors]
    if weights is inner:
        dropped += [str(name) for name in top if name != "model"]
    return tensors, dropped


def _apart(tensors: Tensors, origin: str) -> Tensors:
    """Return tensors that share no memory, which safetensors would refuse."""
    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{origin}: {name} cannot be held by safetensors")
        storage = value.untyped_storage().data_ptr()
        apart[name] = (value.detach().clone() if storage in seen else value.detach()).contiguous()
        seen.add(storage)
    return apart
