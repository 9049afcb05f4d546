"""Images of chats: files and PIL images → tokens, each image encoded once."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from PIL import Image

from minigpt4.datasets.images import as_shown, load_image
from minigpt4.datasets.samples import ToPixels
from minigpt4.models.minigpt4 import MiniGPT4

_KEPT = 64  # images whose tokens are kept, of all chats together

ImageInput = str | Path | Image.Image


def open_image(image: ImageInput) -> Image.Image:
    """Open an image as a viewer shows it; raise a DataError if it is not readable."""
    return as_shown(image) if isinstance(image, Image.Image) else load_image(image, shown=True)


class EncodedImages:
    """Tokens of the latest images."""

    def __init__(self, model: MiniGPT4, image_processor: ToPixels) -> None:
        self._model = model
        self._image_processor = image_processor
        self._tokens: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.no_grad()
    def encode(self, image: ImageInput) -> torch.Tensor:
        """Return an image's tokens ``[Q, H]``; those of the same pixels are computed once."""
        pixels = self._image_processor(open_image(image))
        key = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
        tokens = self._tokens.pop(key, None)
        if tokens is None:
            (tokens,) = self._model.encode_img(pixels[None].to(self._model.device))
        self._tokens[key] = tokens
        while len(self._tokens) > _KEPT:
            self._tokens.popitem(last=False)
        return tokens
