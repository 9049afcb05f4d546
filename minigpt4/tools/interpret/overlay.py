"""Overlays: a picture as the model sees it, and a heat map laid over it."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from minigpt4.chat import Chat, ImageInput, open_image
from minigpt4.errors import ConfigError
from minigpt4.processors import ImageProcessor

# From where a little is more than an even share to the most: colour, and how much it covers.
_STOPS = (0.0, 0.35, 0.7, 1.0)
_COLORS = ((40, 60, 140), (190, 60, 150), (250, 140, 40), (255, 240, 90))
_COVER = (0.0, 0.4, 0.6, 0.72)
_DIM = 0.7  # of the brightness, where nothing is covered: the eye goes to what is


def pixels_seen(chat: Chat, images: Sequence[ImageInput]) -> torch.Tensor:
    """Return normalised pixels ``[N, 3, s, s]``, as the model reads them."""
    processor = _steady(chat)
    return torch.stack([processor(open_image(image)) for image in images])


def picture_seen(chat: Chat, image: ImageInput, side: int | None = None) -> Image.Image:
    """Return the square that the model sees of an image; ``side`` resizes it, for display."""
    pixels = _steady(chat).pixels(open_image(image))
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture if side is None else picture.resize((side, side), Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, shares: torch.Tensor) -> Image.Image:
    """Return a picture under a heat map of ``[rows, columns]`` shares, row 0 at the top.

    Colour begins above the mean share; it is full at the maximum, if that is at least twice the
    mean.
    """
    even = shares.mean().clamp_min(torch.finfo(shares.dtype).tiny)
    above = shares / even - 1
    heat = (above / above.max().clamp_min(1)).clamp(0, 1).to(torch.float32)
    grid = Image.fromarray(heat.cpu().numpy())
    smooth = np.asarray(grid.resize(picture.size, Image.Resampling.BILINEAR))
    color = np.stack(
        [np.interp(smooth, _STOPS, channel) for channel in zip(*_COLORS, strict=True)], -1
    )
    cover = np.interp(smooth, _STOPS, _COVER)[..., None]
    under = np.asarray(picture.convert("RGB"), dtype=np.float64)
    mixed = under * (1 - cover) * (_DIM + (1 - _DIM) * cover) + color * cover
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def _steady(chat: Chat) -> ImageProcessor:
    processor = chat.image_processor
    if not isinstance(processor, ImageProcessor):
        raise ConfigError(
            f"its image processor is a {type(processor).__name__}, and only an ImageProcessor "
            "tells what the model sees"
        )
    if processor.random:
        raise ConfigError(
            "the image processor of this chat crops at random, so that no two looks see the same; "
            "name blip2_image_eval"
        )
    return processor
