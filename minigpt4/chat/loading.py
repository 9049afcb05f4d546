"""Loading: an evaluation YAML → a chat."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from minigpt4.chat.core import Chat
from minigpt4.checked import CheckedConfig, check_sections
from minigpt4.config import load_config
from minigpt4.errors import ConfigError
from minigpt4.processors import ImageProcessor
from minigpt4.registry import IMAGE_PROCESSORS


def choose_device(device: Literal["auto", "cuda", "cpu", "mps"], gpu_id: int = 0) -> torch.device:
    """Return the device to chat on; ``auto`` takes a GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: this machine has none; use --device cpu")
    if device != "cuda":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no usable GPU; use --device cpu")
    if gpu_id >= torch.cuda.device_count():
        raise ConfigError(f"--gpu-id {gpu_id}: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", gpu_id)


def load_chat(
    cfg_path: str | Path,
    options: Sequence[str] = (),
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto",
    gpu_id: int = 0,
) -> Chat:
    """Return a chat from an evaluation YAML, with ``options`` like ``a.b=c`` on top of it.

    Raises:
        MiniGPT4Error: for an error in the config or the weights.
    """
    checked = check_sections(load_config(cfg_path, options), "chat")
    return build_chat(checked, choose_device(device, gpu_id))


def build_chat(checked: CheckedConfig, device: torch.device) -> Chat:
    """Return a chat from a checked config; raise a MiniGPT4Error for bad weights."""
    processor = _image_processor(checked)  # before the model: it fails at once
    model = checked.model.build(device=device)
    return Chat(model, processor, checked.generation)


def _image_processor(checked: CheckedConfig) -> ImageProcessor:
    """Return the processor of the YAML's first data set, as in the original; else a resize."""
    spec: dict[str, Any] = {"name": "blip2_image_eval"}
    for entry in checked.config.datasets.values():
        spec = (entry.get("vis_processor") or {}).get("train") or spec
        break
    size = checked.model_options.tower.image_size
    options = {"image_size": size, **spec}
    processor = IMAGE_PROCESSORS.build(options.pop("name"), options)
    if not isinstance(processor, ImageProcessor) or processor.image_size != size:
        raise ConfigError(
            f"{checked.config.path}: the image processor makes {processor.image_size} pixels, "
            f"model.image_size is {size}"
        )
    return processor
