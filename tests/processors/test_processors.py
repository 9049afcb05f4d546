import pytest
import torch
from PIL import Image

from minigpt4.errors import ConfigError
from minigpt4.processors.image_processors import PIXEL_MEAN, PIXEL_STD
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS


def noise(width: int = 97, height: int = 61) -> Image.Image:
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def test_the_random_crop_follows_torchs_seed() -> None:
    options = {"image_size": 56, "random_crop": True}
    process, image = IMAGE_PROCESSORS.build("blip2_image_train", options), noise()
    crops = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        crops.append(process(image))
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_kind_of_picture_becomes_three_channels(mode: str) -> None:
    pixels = IMAGE_PROCESSORS.build("blip2_image_eval", {"image_size": 28})(
        Image.new(mode, (9, 30))
    )
    assert pixels.shape == (3, 28, 28)
    assert pixels.isfinite().all()


def test_mean_and_std_are_blips_and_can_be_set() -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255))
    default = IMAGE_PROCESSORS.build("blip2_image_eval", {"image_size": 4})(image)[:, 0, 0]
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
        ("blip_caption", {"max_words": 2.5}, "blip_caption.max_words: 2.5"),
    ],
)
def test_a_wrong_option_is_one_line(name: str, options: dict[str, object], message: str) -> None:
    registry = TEXT_PROCESSORS if name == "blip_caption" else IMAGE_PROCESSORS
    with pytest.raises(ConfigError) as error:
        registry.build(name, options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
