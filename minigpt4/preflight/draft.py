"""Draft: a config that is being checked, with the model that it describes on the meta device."""

import os
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from minigpt4.assembly import chosen_precision
from minigpt4.checked import CheckedConfig, Purpose
from minigpt4.config.checks import check_layers
from minigpt4.models import Precision
from minigpt4.models.build import build_towers
from minigpt4.models.language_model import empty_language_model
from minigpt4.models.lora import add_lora
from minigpt4.models.options import ModelOptions
from minigpt4.models.towers import Towers
from minigpt4.registry import UnknownOptionError
from minigpt4.runners.options import RunOptions

META = torch.device("meta")


class MetaModel(nn.Module):
    """Parts of a model without memory, under the names that they have in ``MiniGPT4``."""

    def __init__(
        self, towers: Towers, language_model: PreTrainedModel, features_width: int
    ) -> None:
        super().__init__()
        self.visual_encoder, self.ln_vision = towers.visual_encoder, towers.ln_vision
        self.q_former, self.query_tokens = towers.q_former, towers.query_tokens
        self.llama_model = language_model
        width = language_model.get_input_embeddings().weight.shape[1]
        self.llama_proj = nn.Linear(features_width, width, device=META)


@dataclass(frozen=True)
class Draft:
    """What the checks look at.

    Attributes:
        checked: The config, without its wrong options.
        device: "cuda", "cpu" or "mps"; None where that is unknown.
    """

    checked: CheckedConfig
    device: str | None

    @property
    def purpose(self) -> Purpose:
        return self.checked.purpose

    @property
    def model(self) -> ModelOptions:
        return self.checked.model_options

    @property
    def run(self) -> RunOptions:
        return self.checked.run

    @cached_property
    def towers(self) -> Towers:
        """The towers without memory.

        Raises:
            UnknownOptionError: where their dimensions are unknown or impossible.
        """
        options, dtype = self.model, self._dtype
        try:
            with META:
                return build_towers(options, META, dtype)
        except UnknownOptionError:
            raise
        except Exception as error:  # on dimensions that no tower has, timm and torch raise any kind
            raise UnknownOptionError from error

    @cached_property
    def meta_model(self) -> MetaModel:
        """The whole model without memory; errors are those of :attr:`towers`."""
        towers, options, dtype = self.towers, self.model, self._dtype
        folder, trainable = options.llama_model, options.trainable
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise UnknownOptionError  # missing, or a hub id that is fetched later
        try:
            # Code that lies with a model is not run here, nor asked about.
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if check_layers(config.get_text_config().num_hidden_layers):
                raise UnknownOptionError
            language_model = empty_language_model(folder, dtype)
            if "lora" in trainable:
                add_lora(language_model, options.lora)
        except UnknownOptionError:
            raise
        except Exception as error:  # on impossible values, transformers raises any kind
            raise UnknownOptionError from error
        return MetaModel(towers, language_model, options.features_width)

    @property
    def precision(self) -> tuple[str, Precision]:
        """Key and value of what decides the arithmetic of the frozen parts."""
        if self.purpose == "chat":
            return "model.precision", self.model.precision
        return chosen_precision(self.checked)

    @property
    def _dtype(self) -> torch.dtype:
        """Arithmetic of the frozen parts; bf16 also stands for fp16, which takes as much."""
        _, precision = self.precision
        on_cpu = self.device == "cpu" and precision != "bf16"
        return torch.float32 if on_cpu or precision == "fp32" else torch.bfloat16
