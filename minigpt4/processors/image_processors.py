"""Image processors: a PIL image → normalised pixels ``[3, size, size]`` in fp32.

Source: BLIP-2's processors as MiniGPT-4 uses them; exact against ``tests/golden/processors``.
"""

from typing import Annotated

import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from minigpt4.checks import Positive, check_positive
from minigpt4.registry import IMAGE_PROCESSORS

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

_Channels = tuple[float, float, float]
_Scale = Annotated[float, check_positive]


class ImageProcessor:
    """A geometric transform, then scaling to [0, 1] and normalisation.

    ``random`` says whether the transform draws; an evaluation tells so.
    """

    def __init__(
        self,
        geometry: torch.nn.Module,
        image_size: int,
        mean: _Channels,
        std: _Channels,
        random: bool = False,
    ):
        self.image_size, self.mean, self.std = image_size, mean, std
        self.random = random
        self._transform = transforms.Compose(
            [geometry, transforms.ToTensor(), transforms.Normalize(mean, std)]
        )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = self._transform(image.convert("RGB"))
        assert isinstance(pixels, torch.Tensor)
        return pixels


@IMAGE_PROCESSORS.register("blip2_image_train")
def build_blip2_image_train(
    image_size: Positive = 224,
    mean: _Channels = PIXEL_MEAN,
    std: _Channels = PIXEL_STD,
    min_scale: _Scale = 0.5,
    max_scale: _Scale = 1.0,
    random_crop: bool = False,
) -> ImageProcessor:
    """The training processor: a plain resize, or v1's random crop.

    Args:
        image_size: Pixels of each side.
        mean: Of each channel, in [0, 1].
        std: Of each channel, in [0, 1].
        min_scale: Smallest share of the area that a random crop keeps.
        max_scale: Largest share of the area that a random crop keeps.
        random_crop: v1 crops at random; the original's last state resizes, and so do we.
    """
    if not random_crop:
        return build_blip2_image_eval(image_size, mean, std)
    crop = transforms.RandomResizedCrop(
        image_size, scale=(min_scale, max_scale), interpolation=InterpolationMode.BICUBIC
    )
    return ImageProcessor(crop, image_size, mean, std, random=True)


@IMAGE_PROCESSORS.register("blip2_image_eval")
def build_blip2_image_eval(
    image_size: Positive = 224, mean: _Channels = PIXEL_MEAN, std: _Channels = PIXEL_STD
) -> ImageProcessor:
    """The evaluation processor: a bicubic resize to a square."""
    resize = transforms.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return ImageProcessor(resize, image_size, mean, std)
