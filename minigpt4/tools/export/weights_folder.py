"""Weights of a Hugging Face folder: safetensors or ``.bin``, one file or shards, read by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt4.errors import CheckpointError
from minigpt4.weights.checkpoint import load_weights
from minigpt4.weights.names import Tensors

# Buffers that old versions of transformers saved; they follow from the config.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class StoredTensor:
    """File, shape and dtype of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightsFolder:
    """The tensors of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self.tensors = {
            name: StoredTensor(file, tuple(value.shape), value.dtype)
            for file in self.files
            for name, value in _open(file).items()
            if not _COMPUTED.search(name)
        }

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor; its file is closed again, to free the memory of what was read."""
        return _open(self.tensors[name].file)[name].detach()


def _weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights, of the first form that exists, as transformers does."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
        if shards := sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
            count = shards[0].stem.rpartition("-")[2]
            numbers = range(1, int(count) + 1 if count.isdecimal() else 2)
            for shard in (folder / f"{stem}-{n:05d}-of-{count}.{suffix}" for n in numbers):
                if shard not in shards:
                    raise CheckpointError(f"{shard}: missing; fetch it, too")
            return shards
    raise CheckpointError(
        f"{folder}: holds no weights (model.safetensors or pytorch_model.bin, or shards of them); "
        "Meta's own files must be converted to a Hugging Face folder first"
    )


def _open(file: Path) -> Tensors:
    """Return the tensors of a file by name, with their values still on disk."""
    content = load_weights(file, mapped=True)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file}: holds something else than tensors with names")
    return dict(content)
