"""Convert a checkpoint to safetensors, or back; the suffixes say which way."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.errors import CheckpointError, MiniGPT4Error

if TYPE_CHECKING:
    from minigpt4.weights.names import Tensors

PICKLED = (".pth", ".pt", ".bin")
SAFE = ".safetensors"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``convert``."""
    known = ", ".join(PICKLED)
    parser.add_argument("source", type=Path, metavar="IN", help=f"{known} or {SAFE}")
    parser.add_argument(
        "target", type=Path, metavar="OUT", help=f"{SAFE}, or {known}; must not be there yet"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write ``OUT``, whole or not at all; one line tells what it cannot hold."""
    source, target = arguments.source, arguments.target
    to_safe = _direction(source, target)
    if target.exists():
        raise MiniGPT4Error(f"{target}: exists already; nothing is overwritten")
    from minigpt4.files import write_atomically
    from minigpt4.weights.checkpoint import load_weights, save_atomically

    tensors, dropped = tensors_of(load_weights(source), str(source))
    if to_safe:
        from safetensors.torch import save

        content = save(_apart(tensors, str(source)))
        write_atomically(target, lambda file: file.write(content))
    else:
        save_atomically(pickled_form(tensors), target)
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


def tensors_of(content: Any, origin: str) -> tuple["Tensors", list[str]]:
    """The weights of a file, its ``"model"`` part or all of it, and the names of what else it has.

    Raises:
        CheckpointError: when there is no tensor with a name.
    """
    import torch

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


def pickled_form(tensors: "Tensors") -> dict[str, Any]:
    """The form that readers of such weights expect: a ``"model"`` part, or the tensors on top.

    The former is that of checkpoints and of BLIP-2's file, here and in the original.
    """
    from minigpt4.weights.names import trained_part

    if any(map(trained_part, tensors)):
        return {"model": tensors}
    return dict(tensors)


def _apart(tensors: "Tensors", origin: str) -> "Tensors":
    """Each tensor in memory of its own: safetensors holds no two names for the same numbers."""
    import torch

    seen: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{origin}: {name} cannot be held by safetensors")
        storage = value.untyped_storage().data_ptr()
        apart[name] = (value.detach().clone() if storage in seen else value.detach()).contiguous()
        seen.add(storage)
    return apart
