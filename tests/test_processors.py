import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from minigpt4.errors import ConfigError
from minigpt4.processors import (
    PIXEL_MEAN,
    PIXEL_STD,
    ImageProcessor,
    Normalise,
    TrainImageProcessor,
)
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS
from tests.helpers.messages import one_line


def noise(width: int = 97, height: int = 61, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_the_random_crop_follows_torchs_seed() -> None:
    process, image = TrainImageProcessor(56, random_crop=True), noise()
    crops = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        crops.append(process(image))
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


@pytest.mark.parametrize("crop", [False, True])
def test_pixels_are_those_of_torchvisions_transforms_bit_for_bit(crop: bool) -> None:
    rng = random.Random(0)
    for seed in range(60):
        size, width, height = (rng.choice((1, 9, 28, 224, 300)) for _ in range(3))
        mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F"])
        image = noise(width, height, mode, seed)
        bicubic = InterpolationMode.BICUBIC
        geometry = (
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=bicubic)
            if crop
            else transforms.Resize((size, size), interpolation=bicubic)
        )
        steps = [geometry, transforms.ToTensor(), transforms.Normalize(PIXEL_MEAN, PIXEL_STD)]
        process = TrainImageProcessor(size, random_crop=crop)
        torch.manual_seed(seed)
        expected = transforms.Compose(steps)(image.convert("RGB"))
        torch.manual_seed(seed)
        assert torch.equal(process(image), expected)


# The two halves


STDS = [PIXEL_STD, (0.1, 0.7, 1e-3)]


@pytest.mark.parametrize("std", STDS)
def test_a_batch_is_normalised_as_each_picture_bit_for_bit(std: tuple[float, float, float]) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(5, 3, 16, 16)
    bytes_before = every_byte.clone()
    singly = transforms.Normalize(PIXEL_MEAN, std)
    expected = torch.stack([singly(picture.float().div(255)) for picture in every_byte])
    normalise = pickle.loads(pickle.dumps(Normalise(PIXEL_MEAN, std)))
    assert torch.equal(normalise(every_byte), expected)
    assert torch.equal(normalise(every_byte), expected)
    assert torch.equal(every_byte, bytes_before)


@pytest.mark.gpu
@pytest.mark.parametrize("std", STDS)
def test_a_gpu_normalises_bit_for_bit_as_the_cpu(std: tuple[float, float, float]) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(5, 3, 16, 16)
    normalise = Normalise(PIXEL_MEAN, std)
    assert torch.equal(normalise(every_byte.cuda()).cpu(), normalise(every_byte))


def test_what_travels_with_a_batch_is_small() -> None:
    assert len(pickle.dumps(ImageProcessor().normalise)) < 300


# torchvision


def edges(width: int, height: int) -> Image.Image:
    """Black and white blocks of every size."""
    rows, columns = np.ogrid[:height, :width]
    board = (rows**2 // 97 + columns**2 // 61) % 2 * 255
    return Image.fromarray(board.astype(np.uint8)).convert("RGB")


def shades(width: int, height: int) -> Image.Image:
    """Waves and slopes, of another sort in each channel."""
    rows, columns = np.ogrid[:height, :width]
    channels = [
        127 + 127 * np.sin(rows / 19 + columns / 31),
        rows * 255 / height + columns * 0,
        127 + 64 * np.cos(columns / 5) + 63 * np.sin(rows / 3),
    ]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


SIZES = [(640, 480), (1600, 1200), (224, 224), (225, 223), (300, 90), (50, 70)]
SIZES += [(2, 900), (900, 2), (1, 1)]
PICTURES: dict[str, Callable[[int, int], Image.Image]] = {
    "noise": noise,
    "edges": edges,
    "shades": shades,
}


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_torchvision_is_two_grey_levels_off_at_most(
    width: int, height: int, kind: str, crop: bool
) -> None:
    image = PICTURES[kind](width, height)
    found = []
    for backend in ("pil", "torchvision"):
        options = {"random_crop": crop, "image_backend": backend}
        torch.manual_seed(width)
        found.append(IMAGE_PROCESSORS.build("blip2_image_train", options).pixels(image).int())
    assert (found[0] - found[1]).abs().max() <= 2


def test_torchvision_takes_decoded_pixels_too() -> None:
    image = noise()
    process = ImageProcessor(28, image_backend="torchvision")
    decoded = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = process.pixels(image)
    for pixels in (decoded, decoded.contiguous()):
        assert torch.equal(process.pixels(pixels), expected)
    assert process.pixels(decoded).is_contiguous()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_kind_of_picture_becomes_three_channels(mode: str) -> None:
    pixels = ImageProcessor(28)(Image.new(mode, (9, 30)))
    assert pixels.shape == (3, 28, 28)
    assert pixels.isfinite().all()


def test_mean_and_std_are_blips_and_can_be_set() -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255))
    default = ImageProcessor(4)(image)[:, 0, 0]
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    torch.testing.assert_close(default, (1 - mean) / std)
    options = {"image_size": 4, "mean": [0, 0.5, 0], "std": [1, 0.5, 1]}
    assert IMAGE_PROCESSORS.build("blip2_image_eval", options)(image)[:, 0, 0].tolist() == [1, 1, 1]


def test_plain_text_is_left_alone() -> None:
    text = " Two  lines.\n###"
    assert TEXT_PROCESSORS.build("plain_text", {})(text) == text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("blip2_image_evall", {}, "known: blip2_image_eval, blip2_image_train"),
        ("blip2_image_eval", {"image_sise": 4}, "did you mean 'image_size'"),
        ("blip2_image_eval", {"image_size": "large"}, "blip2_image_eval.image_size: 'large'"),
        ("blip2_image_eval", {"mean": [0.5, 0.5]}, "blip2_image_eval.mean: "),
        ("blip2_image_eval", {"image_backend": "cv2"}, "'pil' or 'torchvision'"),
        ("blip_caption", {"max_words": 2.5}, "blip_caption.max_words: 2.5"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, object], message: str) -> None:
    registry = TEXT_PROCESSORS if name == "blip_caption" else IMAGE_PROCESSORS
    with one_line(ConfigError, message):
        registry.build(name, options)
