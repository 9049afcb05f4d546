"""Features on disk: what the frozen towers made of images, in memory-mapped safetensors."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from minigpt4.errors import DataError, one_line
from minigpt4.files import write_atomically

_TENSOR = "features"  # the one tensor of a file: [n, Q, D]
_OPEN_FILES = 32  # per process


@dataclass(frozen=True)
class CachedFeatures:
    """One image's features on the disk: a row of a file."""

    file: Path
    row: int

    def load(self) -> torch.Tensor:
        """Return features ``[Q, D]`` in the dtype in which they were written.

        Raises:
            DataError: for a file that is missing, damaged or has fewer rows.
        """
        try:
            features = _open(self.file).get_slice(_TENSOR)[self.row : self.row + 1]
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"{self.file}, row {self.row}: {one_line(error)}") from error
        if not len(features):
            raise DataError(f"{self.file} has no row {self.row}")
        assert isinstance(features, torch.Tensor)
        return features[0]


@functools.lru_cache(maxsize=_OPEN_FILES)
def _open(file: Path) -> Any:
    return safe_open(file, framework="pt")


def save_features(features: torch.Tensor, file: Path) -> None:
    """Write features ``[n, Q, D]``, whole or not at all.

    Raises:
        MiniGPT4Error: when the disk is full or the folder cannot be written.
    """
    content = save({_TENSOR: features.contiguous()})
    write_atomically(file, lambda opened: opened.write(content))
