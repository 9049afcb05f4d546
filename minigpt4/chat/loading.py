"""Loading: an evaluation YAML → a chat."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from minigpt4.chat.core import Chat
from minigpt4.chat.generation import GenerationOptions, option_faults
from minigpt4.config import Config, check_config, load_config
from minigpt4.config.checks import check_model_folder
from minigpt4.conversation import SHIPPED, Template
from minigpt4.conversation.templates import load_template
from minigpt4.errors import ConfigError
from minigpt4.models.language_model import vocabulary_fault
from minigpt4.processors.image_processors import ImageProcessor
from minigpt4.registry import IMAGE_PROCESSORS, MODELS, Fault, bind, build_named


def check_chat(config: Config) -> list[Fault]:
    """Faults of the ``chat:`` section, and of a language model that was taught other turns."""
    bound, faults = bind(GenerationOptions, config.chat, "chat", dry=True)
    if not faults:
        faults = option_faults(asdict(GenerationOptions()) | bound)
    folder = config.model.get("llama_model")
    told = any(fault.key.startswith("chat.template") for fault in faults)
    if told or not isinstance(folder, str) or check_model_folder(folder):
        return faults
    spec = bound.get("template", GenerationOptions.template)
    try:
        template = load_template(spec, folder)
    except ConfigError as error:
        return [*faults, Fault(*str(error).split(": ", 1))]
    return faults + _vocabulary_faults(config, folder, template if spec in SHIPPED else None)


def _vocabulary_faults(config: Config, folder: str, template: Template | None) -> list[Fault]:
    """The separators of what is asked and of what is learnt, held against the vocabulary.

    Of a template that the user brings, nothing is known but that the tokenizer must fit.
    """
    separators: list[str | None] = [None]
    if template is not None:
        separators.append(template.separator or template.stops[0])
    learnt = config.model.get("prompt_template"), config.model.get("end_sym")
    if "###Human" in str(learnt[0]) or str(learnt[1]).strip() == "###":
        separators.append("###")
    found = (vocabulary_fault(folder, separator) for separator in separators)
    return [Fault("model.llama_model", text) for text in found if text][:1]


def choose_device(device: Literal["auto", "cuda", "cpu", "mps"], gpu_id: int = 0) -> torch.device:
    """The device to chat on; ``auto`` takes a GPU where there is one."""
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
    """A chat from an evaluation YAML.

    Args:
        cfg_path: E.g. ``eval_configs/tiny_eval.yaml``.
        options: ``a.b=c`` each, on top of the YAML.
        device: Where to run.
        gpu_id: Which GPU.

    Raises:
        MiniGPT4Error: for a fault in the config or the weights.
    """
    config = load_config(cfg_path, options)
    check_config(config, sections=("model",), extra=check_chat)
    return build_chat(config, choose_device(device, gpu_id))


def build_chat(config: Config, device: torch.device) -> Chat:
    """A chat from a config that is checked already.

    Raises:
        MiniGPT4Error: for weights that are missing or do not fit together.
    """
    processor = _image_processor(config)  # before the model: it fails at once
    model = MODELS.build(config.arch, config.model_options(), device=device)
    return Chat(model, processor, generation_options(config))


def generation_options(config: Config) -> GenerationOptions:
    """The ``chat:`` section, its template loaded.

    Raises:
        ConfigError: for a language model whose own chat template cannot be used.
    """
    options = GenerationOptions(**bind(GenerationOptions, config.chat, "chat")[0])
    template = load_template(options.template, str(config.model.get("llama_model")))
    return replace(options, template=template)


def _image_processor(config: Config) -> ImageProcessor:
    """The one the YAML's first data set names, as in the original; else a plain resize."""
    spec: dict[str, Any] = {"name": "blip2_image_eval"}
    for entry in config.datasets.values():
        spec = (entry.get("vis_processor") or {}).get("train") or spec
        break
    size = config.model.get("image_size", 224)
    processor = build_named(IMAGE_PROCESSORS, {**spec, "image_size": spec.get("image_size", size)})
    if not isinstance(processor, ImageProcessor) or processor.image_size != size:
        raise ConfigError(
            f"{config.path}: the image processor makes {processor.image_size} pixels, "
            f"model.image_size is {size}"
        )
    return processor
