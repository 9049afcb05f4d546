"""Recorded data: image and caption processors, learning rates, resized position embeddings."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torchvision import transforms

from minigpt4.errors import ConfigError
from minigpt4.models.vision_towers.eva import resize_position_embedding
from minigpt4.processors import PIXEL_MEAN, PIXEL_STD
from minigpt4.registry import (
    IMAGE_PROCESSORS,
    LR_SCHEDULES,
    TEXT_PROCESSORS,
    visible_parameters,
)
from tests.helpers.recorded.comparison import (
    Comparison,
    Recorded,
    Unit,
    compare,
    equal,
    files_of,
    read_json,
)

_RESIZE = re.compile(r"(\d+)to(\d+)\.in")
_PIXELS = re.compile(r"(?P<image>.+)\.(?P<kind>eval|train_v1)\.(?P<size>\d+)(?:\.seed\d+)?")


def find_data(folder: Path) -> Iterator[Unit]:
    """Processors, schedules and position embeddings, told apart by what is in the files."""
    for file in files_of(folder, "*.json"):
        content = read_json(file)
        title, tensors = file.stem, file.with_suffix(".safetensors")
        if isinstance(content, list) and content and "epoch_step_lr" in content[0]:
            check = partial(compare_schedules, content)
            yield Unit(title, "schedule", frozenset({file}), check)
        elif isinstance(content, dict) and "normalize_mean" in content:
            pictures = {file.parent / facts["file"] for facts in content["images"].values()}
            check = partial(compare_images, file.parent, content, tensors)
            yield Unit(title, "images", frozenset({file, tensors, *pictures}), check)
        elif isinstance(content, dict) and _is_captions(content.get("default")):
            check = partial(compare_captions, content)
            yield Unit(title, "captions", frozenset({file}), check)
    for file in files_of(folder, "*.safetensors"):
        if any(map(_RESIZE.fullmatch, _names_in(file))):
            check = partial(compare_position_embeddings, file)
            yield Unit(file.stem, "positions", frozenset({file}), check)


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as tensors:
            return list(tensors.keys())
    except SafetensorError:
        return []


def _is_captions(pairs: object) -> bool:
    return isinstance(pairs, list) and bool(pairs) and "input" in pairs[0]


def compare_schedules(content: list[dict[str, Any]]) -> list[Comparison]:
    """Every recorded learning rate; what failed midway in the original is refused at the start."""
    results = []
    for facts in content:
        options = dict(facts["config"])
        options["warmup_lr"] = options.pop("warmup_start_lr")
        options["lr_decay_rate"] = options.pop("decay_rate", None)
        recorded = [rate for _, _, rate in facts["epoch_step_lr"]]
        what = f"{facts['scheduler']} {facts['name']}: {len(recorded)} rates"
        fails = any(rate == "TypeError" for rate in recorded)
        try:
            known = visible_parameters(LR_SCHEDULES.get(facts["scheduler"]))[1]
            given = {key: value for key, value in options.items() if key in known}
            schedule = LR_SCHEDULES.build(facts["scheduler"], given)
        except ConfigError as error:
            results.append(equal(f"{what}, refused", True, fails))
            if "lr_decay_rate" not in str(error):
                results.append(equal(f"{what}, reason", str(error), "lr_decay_rate"))
            continue
        ours = [schedule(epoch, step) for epoch, step, _ in facts["epoch_step_lr"]]
        results.append(equal(what, ours, recorded))
    return results


def compare_images(folder: Path, facts: dict[str, Any], file: Path) -> list[Comparison]:
    """Pixels of both processors, exact; the random crop with its recorded seed."""
    tensors, crops = Recorded(file), facts["train_v1"]
    shape = {"mean": facts["normalize_mean"], "std": facts["normalize_std"]}
    channels = [list(PIXEL_MEAN), list(PIXEL_STD)]
    results = [equal("mean and std", channels, list(shape.values()))]
    for name, picture in facts["images"].items():
        with Image.open(folder / picture["file"]) as image:
            opened = [list(image.size), image.mode, image.convert("RGB").mode]
        wanted = [picture["size_wh"], picture["mode"], picture["loaded_as"]]
        results.append(equal(f"{name}: picture", opened, wanted))
    for name in tensors:
        key = _PIXELS.fullmatch(name)
        if key is None:
            continue  # told as unchecked
        picture, size = facts["images"][key["image"]], int(key["size"])
        options = {"image_size": size, **shape}
        kind = "blip2_image_eval"
        if key["kind"] == "train_v1":
            kind, crop = "blip2_image_train", crops[name]
            low, high = crop["scale"]
            options |= {"random_crop": True, "min_scale": low, "max_scale": high}
        with Image.open(folder / picture["file"]) as image:
            process = IMAGE_PROCESSORS.build(kind, options)
            if key["kind"] == "train_v1":
                results.append(_compare_crop(name, image, crop))
                torch.manual_seed(crop["torch_manual_seed"])
            elif facts.get("train_main_equals_eval"):
                train = IMAGE_PROCESSORS.build("blip2_image_train", options)
                results.append(_exact(f"{name}, train", train(image), tensors[name]))
            results.append(_exact(name, process(image), tensors[name]))
    left = crops.keys() - tensors.keys()
    return [*results, equal("every crop has pixels", sorted(left), []), tensors.all_read()]


def _compare_crop(name: str, image: Image.Image, crop: dict[str, Any]) -> Comparison:
    torch.manual_seed(crop["torch_manual_seed"])
    box = transforms.RandomResizedCrop.get_params(image, crop["scale"], crop["ratio"])
    return equal(f"{name}: crop", list(box), crop["crop_top_left_height_width"])


def _exact(what: str, ours: torch.Tensor, theirs: torch.Tensor) -> Comparison:
    if torch.equal(ours, theirs):
        return Comparison(what, 0.0, 0.0)
    result = compare(what, ours, theirs)
    return Comparison(what, result.error, float("inf"), note=result.note)


def compare_captions(content: dict[str, Any]) -> list[Comparison]:
    """The caption processor, as it comes and with options."""
    results = []
    for name, group in content.items():
        pairs = group["pairs"] if isinstance(group, dict) else group
        given = group if isinstance(group, dict) else {}
        options = {key: value for key, value in given.items() if key != "pairs"}
        process = TEXT_PROCESSORS.build("blip_caption", options)
        ours = [process(pair["input"]) for pair in pairs]
        wanted = [pair["output"] for pair in pairs]
        results.append(equal(f"{name}: {len(pairs)} captions", ours, wanted))
    return results


def compare_position_embeddings(file: Path) -> list[Comparison]:
    """Grids resized by the loading code."""
    tensors, results = Recorded(file), []
    for name in tensors:
        sides = _RESIZE.fullmatch(name)
        if sides:
            side, stem = int(sides[2]), name.removesuffix(".in")
            ours = resize_position_embedding(tensors[name], (side, side))
            results.append(compare(stem, ours, tensors[f"{stem}.out"]))
    return [*results, tensors.all_read()]
