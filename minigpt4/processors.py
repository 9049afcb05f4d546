"""Processors: one sample's image or text → what the model takes.

An image becomes normalised pixels ``[3, size, size]`` in fp32. Source: BLIP-2's image processors,
BLIP's captions, as MiniGPT-4 uses them; exact against ``tests/golden/processors``.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from minigpt4.config.checks import Positive, check_positive
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")

ImageBackend = Literal["pil", "torchvision"]
_Channels = tuple[float, float, float]
_Scale = Annotated[float, check_positive]


def check_all_positive(values: _Channels) -> str | None:
    return None if all(value > 0 for value in values) else f"{[*values]} must be greater than 0"


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
    # Three tensors: a GPU multiplies by the rounded reciprocal of a number instead. They stay on
    # the device: copying them there each time would wait for it.
    parts = ((255.0,) * 3, normalise.mean, normalise.std)
    return tuple(torch.tensor(part, device=device).view(3, 1, 1) for part in parts)


@IMAGE_PROCESSORS.register("blip2_image_eval")
@dataclass(frozen=True)
class ImageProcessor:
    """Evaluation processor: a bicubic resize to a square.

    A training takes it in two halves: workers make the bytes, the device normalises them.

    Attributes:
        image_size: Pixels of each side.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        image_backend: ``torchvision`` decodes JPEGs and resizes twice as fast, with pixels up to 2
            of 255 grey levels off the original's.
    """

    image_size: Positive = 224
    mean: _Channels = PIXEL_MEAN
    std: Annotated[_Channels, check_all_positive] = PIXEL_STD
    image_backend: ImageBackend = "pil"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return Normalise(self.mean, self.std)(self.pixels(image))

    @property
    def random(self) -> bool:
        """Whether two calls on one image may differ."""
        return False

    @property
    def normalise(self) -> Normalise | None:
        """The second half; None in a subclass with its own call, which is not to be split."""
        whole = type(self).__call__ is ImageProcessor.__call__
        return Normalise(self.mean, self.std) if whole else None

    @property
    def geometry(self) -> Callable[[Any], Any]:
        """The transform of a PIL image or of bytes to ``image_size``."""
        return v2.Resize((self.image_size,) * 2, interpolation=InterpolationMode.BICUBIC)

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
    """``[3, H, W]``, in PIL's own memory order."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@IMAGE_PROCESSORS.register("blip2_image_train")
@dataclass(frozen=True)
class TrainImageProcessor(ImageProcessor):
    """Training processor: a plain resize, or v1's random crop.

    Attributes:
        min_scale: Minimum fraction of the area that a random crop keeps.
        max_scale: Maximum fraction of the area that a random crop keeps.
        random_crop: v1 crops at random; the original's last state resizes, and so does ours.
    """

    min_scale: _Scale = 0.5
    max_scale: _Scale = 1.0
    random_crop: bool = False

    @property
    def random(self) -> bool:
        return self.random_crop

    @property
    def geometry(self) -> Callable[[Any], Any]:
        if not self.random_crop:
            return super().geometry
        scale, bicubic = (self.min_scale, self.max_scale), InterpolationMode.BICUBIC
        return v2.RandomResizedCrop(self.image_size, scale=scale, interpolation=bicubic)


@TEXT_PROCESSORS.register("blip_caption")
@dataclass(frozen=True)
class BlipCaption:
    """Lower-case, drop some punctuation, squeeze white space, cut.

    Attributes:
        prompt: Put in front of every caption.
        max_words: Words after which a caption is cut.
    """

    prompt: str = ""
    max_words: Positive = 50

    def __call__(self, caption: str) -> str:
        text = _SPACES.sub(" ", _PUNCTUATION.sub(" ", caption.lower()))
        words = text.rstrip("\n").strip(" ").split(" ")
        return self.prompt + " ".join(words[: self.max_words])


@TEXT_PROCESSORS.register("plain_text")
def build_plain_text() -> Callable[[str], str]:
    """Leave the text as it is (stage-2 descriptions)."""
    return str
