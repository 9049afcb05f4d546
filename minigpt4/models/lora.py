"""LoRA: small trained matrices beside the frozen language model's (optional, off by default).

They are peft's; the model around them, its names and its generation stay transformers' own.
"""

import importlib.util
from dataclasses import dataclass
from typing import Annotated

from torch import nn
from transformers import PreTrainedModel

from minigpt4.config.checks import Positive
from minigpt4.errors import ConfigError, one_line

LACKING = "needs peft, which is not installed; pip install -e '.[lora]'"


def _check_dropout(value: float) -> str | None:
    return None if 0 <= value < 1 else f"{value} must be at least 0 and less than 1"


@dataclass(frozen=True)
class LoraOptions:
    """The LoRA of a language model.

    Attributes:
        r: Rank of the added matrices.
        alpha: Scale of what they add, divided by ``r``.
        dropout: On their input, while training.
        target_modules: Linear layers of the language model that get them.
    """

    r: Positive = 8
    alpha: Positive = 16
    dropout: Annotated[float, _check_dropout] = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")


def has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


def add_lora(language_model: PreTrainedModel, options: LoraOptions) -> None:
    """Put untrained LoRA matrices, in fp32, beside the frozen ones; they add nothing yet.

    Raises:
        ConfigError: without peft, or for target modules that the language model lacks.
    """
    if not has_peft():
        raise ConfigError(f"model.trainable: lora {LACKING}")
    from minigpt4.models.speed.quantization import silence

    silence()  # peft imports bitsandbytes where it is installed
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules),
        bias="none",
    )
    try:
        inject_adapter_in_model(config, language_model)
    except ValueError as error:
        raise ConfigError(f"model.lora: {one_line(error)}") from error
    for name, parameter in language_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def merge_lora(language_model: nn.Module) -> None:
    """Add each LoRA's matrices to the frozen one beside it, and take them out."""
    if not any(".lora_" in name for name, _ in language_model.named_parameters()):
        return
    from peft.tuners.lora import LoraLayer

    layers = {n: m for n, m in language_model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        layer.merge()
        language_model.set_submodule(name, layer.get_base_layer())
