"""Image processors: a PIL image → normalised pixels ``[3, size, size]`` in fp32.

Source: BLIP-2's processors as MiniGPT-4 uses them; exact against ``tests/golden/processors``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from minigpt4.config.checks import Positive, check_positive
from minigpt4.registry import IMAGE_PROCESSORS

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

ImageBackend = Literal["pil", "torchvision"]
_Channels = tuple[float, float, float]
_Scale = Annotated[float, check_positive]


def check_all_positive(values: _Channels) -> str | None:
    return None if all(value > 0 for value in values) else f"{[*values]} must be greater than 0"


_Std = Annotated[_Channels, check_all_positive]


@dataclass(frozen=True)
class Normalise:
    """Bytes ``[..., 3, H, W]`` → fp32, scaled to [0, 1] and normalised; bit-equal on any device."""

    mean: _Channels
    std: _Channels

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        most, mean, std = _constants(self, pixels.device)
        return pixels.to(torch.float32).div_(most).sub_(mean).div_(std)


@functools.lru_cache
def _constants(normalise: Normalise, device: torch.device) -> tuple[torch.Tensor, ...]:
    # Tensors all three: a GPU multiplies by the rounded reciprocal of a number instead. They are
    # kept on the device, as to copy them there would be a wait.
    parts = ((255.0,) * 3, normalise.mean, normalise.std)
    return tuple(torch.tensor(part, device=device).view(3, 1, 1) for part in parts)


@dataclass(eq=False)
class ImageProcessor:
    """A geometric transform to bytes, then scaling to [0, 1] and normalisation.

    A training takes the two halves apart: workers make the bytes, the device normalises them.

    Attributes:
        geometry: The transform, of a PIL image or a tensor.
        image_size: Pixels of each side.
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
        random: Whether the transform draws; an evaluation tells so.
        image_backend: What resizes; ``torchvision`` decodes JPEGs and resizes twice as fast, with
            pixels up to 2 of 255 grey levels off the original's.
    """

    geometry: Callable[[Any], Any]
    image_size: int
    mean: _Channels
    std: _Channels
    random: bool = False
    image_backend: ImageBackend = "pil"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return Normalise(self.mean, self.std)(self.pixels(image))

    @property
    def normalise(self) -> Normalise | None:
        """The second half; None in a subclass with a call of its own, which is not to be split."""
        whole = type(self).__call__ is ImageProcessor.__call__
        return Normalise(self.mean, self.std) if whole else None

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """The first half: bytes ``[3, size, size]``, of a PIL image or of bytes ``[3, H, W]``."""
        if isinstance(image, Image.Image) and image.mode != "RGB":  # which convert would copy
            image = image.convert("RGB")
        height, width = v2.functional.get_size(image)
        # PIL resizes a tall strip in another order, which bicubic overshoot makes visible.
        if self.image_backend == "pil" or height > 100 * width:
            if isinstance(image, torch.Tensor):
                image = v2.functional.to_pil_image(image)
            return _bytes_of(self.geometry(image)).contiguous()
        pixels = image if isinstance(image, torch.Tensor) else _bytes_of(image)
        return self.geometry(pixels).contiguous()


def _bytes_of(image: Image.Image) -> torch.Tensor:
    """``[3, H, W]``, in PIL's own order of memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@IMAGE_PROCESSORS.register("blip2_image_train")
def build_blip2_image_train(
    image_size: Positive = 224,
    mean: _Channels = PIXEL_MEAN,
    std: _Std = PIXEL_STD,
    min_scale: _Scale = 0.5,
    max_scale: _Scale = 1.0,
    random_crop: bool = False,
    image_backend: ImageBackend = "pil",
) -> ImageProcessor:
    """Return the training processor: a plain resize, or v1's random crop.

    Args:
        image_size: Pixels of each side.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        min_scale: Minimum fraction of the area that a random crop keeps.
        max_scale: Maximum fraction of the area that a random crop keeps.
        random_crop: v1 crops at random; the original's last state resizes, and so does ours.
        image_backend: ``torchvision`` decodes JPEGs and resizes twice as fast, with pixels up to 2
            of 255 grey levels off the original's.
    """
    if not random_crop:
        return build_blip2_image_eval(image_size, mean, std, image_backend)
    crop = v2.RandomResizedCrop(
        image_size, scale=(min_scale, max_scale), interpolation=InterpolationMode.BICUBIC
    )
    return ImageProcessor(crop, image_size, mean, std, True, image_backend)


@IMAGE_PROCESSORS.register("blip2_image_eval")
def build_blip2_image_eval(
    image_size: Positive = 224,
    mean: _Channels = PIXEL_MEAN,
    std: _Std = PIXEL_STD,
    image_backend: ImageBackend = "pil",
) -> ImageProcessor:
    """Return the evaluation processor: a bicubic resize to a square.

    Args:
        image_size: Pixels of each side.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        image_backend: As in training.
    """
    resize = v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return ImageProcessor(resize, image_size, mean, std, image_backend=image_backend)
