"""Vision towers: what every frozen image encoder provides; a module each, found and registered."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from minigpt4.errors import Fault


class VisionTower(Protocol):
    """Options of a frozen image encoder, and what is built from them.

    A dataclass that is registered in ``VISION_TOWERS``: its fields are the keys that
    ``model.vision_tower`` takes next to ``name``.
    """

    @property
    def weights(self) -> str:
        """File or URL of the weights."""

    @property
    def image_size(self) -> int:
        """Pixels of each side of an image."""

    @property
    def width(self) -> int:
        """Width of a feature."""

    @property
    def tokens(self) -> int:
        """Features of an image, without prefix tokens."""

    @property
    def prefix_tokens(self) -> int:
        """Features before those of the image's patches, such as a class token."""

    def errors(self) -> Iterable[Fault]:
        """Return what does not go together; keys are those of ``model.vision_tower``."""

    def build(self) -> nn.Module:
        """Return the untrained encoder; it is built on the meta device.

        Its ``forward_features`` takes images ``[N, 3, s, s]`` and returns features
        ``[N, prefix_tokens + tokens, width]``, before any last norm; ``blocks`` are its layers.
        """

    def convert(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of a file under the names of the built encoder, in its shapes.

        Raises:
            CheckpointError: for a file that holds something else.
        """


for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
