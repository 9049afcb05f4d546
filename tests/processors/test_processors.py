import json
from functools import cache

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minigpt4.errors import ConfigError
from minigpt4.processors.image_processors import ImageProcessor
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS
from tests.recorded import GOLDEN

FOLDER = GOLDEN / "processors"
CAPTIONS = json.loads((FOLDER / "blip_caption.json").read_text(encoding="utf-8"))
FACTS = json.loads((FOLDER / "images.json").read_text(encoding="utf-8"))


@cache
def recorded_images() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "images.safetensors")


def processor_and_image(key: str) -> tuple[ImageProcessor, Image.Image]:
    name, kind, size, *_ = key.split(".")
    image = Image.open(FOLDER / f"{name}.png")
    if kind == "eval":
        return IMAGE_PROCESSORS.build("blip2_image_eval", {"image_size": int(size)}), image
    options = {"image_size": int(size), "random_crop": True}
    return IMAGE_PROCESSORS.build("blip2_image_train", options), image


@pytest.mark.parametrize("key", sorted(recorded_images()))
def test_pixels_are_exactly_the_recorded_ones(key: str) -> None:
    process, image = processor_and_image(key)
    if key in FACTS["train_v1"]:
        torch.manual_seed(FACTS["train_v1"][key]["torch_manual_seed"])
    pixels = process(image)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, recorded_images()[key])


@pytest.mark.parametrize("key", [key for key in sorted(recorded_images()) if ".eval." in key])
def test_the_train_processor_without_random_crop_equals_the_eval_one(key: str) -> None:
    process, image = processor_and_image(key)
    train = IMAGE_PROCESSORS.build("blip2_image_train", {"image_size": process.image_size})
    assert torch.equal(train(image), recorded_images()[key])


def test_the_random_crop_follows_torchs_seed() -> None:
    process, image = processor_and_image(next(iter(FACTS["train_v1"])))
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


def test_mean_and_std_are_the_recorded_ones_and_can_be_set() -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255))
    default = IMAGE_PROCESSORS.build("blip2_image_eval", {"image_size": 4})(image)[:, 0, 0]
    mean, std = torch.tensor(FACTS["normalize_mean"]), torch.tensor(FACTS["normalize_std"])
    torch.testing.assert_close(default, (1 - mean) / std)
    options = {"image_size": 4, "mean": [0, 0.5, 0], "std": [1, 0.5, 1]}
    assert IMAGE_PROCESSORS.build("blip2_image_eval", options)(image)[:, 0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("case", CAPTIONS["default"], ids=lambda case: repr(case["input"][:20]))
def test_captions_are_the_recorded_ones(case: dict[str, str]) -> None:
    assert TEXT_PROCESSORS.build("blip_caption", {})(case["input"]) == case["output"]


def test_prompt_and_word_limit_are_the_recorded_ones() -> None:
    recorded = CAPTIONS["prompt_and_max_words_5"]
    options = {key: recorded[key] for key in ("prompt", "max_words")}
    process = TEXT_PROCESSORS.build("blip_caption", options)
    for pair in recorded["pairs"]:
        assert process(pair["input"]) == pair["output"]


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
