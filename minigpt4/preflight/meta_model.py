"""The model of a config on torch's meta device: names, shapes and dtypes, built without memory."""

import os
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from minigpt4.assembly import chosen_precision
from minigpt4.config.checks import check_layers
from minigpt4.models.build import Precision, build_towers, choose_dtype
from minigpt4.models.language_model import empty_language_model
from minigpt4.models.lora import LoraOptions, add_lora
from minigpt4.models.towers import Towers
from minigpt4.preflight.plan import Plan
from minigpt4.registry import options_of

META = torch.device("meta")


class MetaModel(nn.Module):
    """The parts of a model under the names that they have in ``MiniGPT4``."""

    def __init__(self, towers: Towers, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.visual_encoder, self.ln_vision = towers.visual_encoder, towers.ln_vision
        self.q_former, self.query_tokens = towers.q_former, towers.query_tokens
        self.llama_model = language_model
        width = language_model.get_input_embeddings().weight.shape[1]
        self.llama_proj = nn.Linear(towers.features_width, width, device=META)


def meta_model(plan: Plan) -> MetaModel | None:
    """Return the model of a plan; None where a part of it is unknown."""
    towers, language_model = meta_towers(plan), _meta_language_model(plan)
    return MetaModel(towers, language_model) if towers and language_model else None


def meta_towers(plan: Plan) -> Towers | None:
    """Return the towers of a plan; None where their dimensions are unknown or impossible."""
    names = {*options_of(build_towers)} - {"vit_model", "q_former_model"}
    options = {name: plan.model.get(name) for name in sorted(names)}
    options["precision"] = _precision(plan)
    return None if None in options.values() else _build_towers(tuple(options.items()))


def _meta_language_model(plan: Plan) -> PreTrainedModel | None:
    folder, trainable = plan.model.get("llama_model") or "", plan.model.get("trainable") or ()
    lora = plan.model.get("lora") if "lora" in trainable else None
    config = os.path.join(folder, "config.json")
    if not os.path.isfile(config):
        return None  # missing, or a hub id that is fetched later
    return _build_language_model(folder, os.stat(config).st_mtime_ns, _precision(plan), lora)


def precision_of(plan: Plan) -> tuple[str, Precision]:
    """Return key and value of what decides the arithmetic of the frozen parts."""
    model = {"precision": "auto"} | plan.model
    return chosen_precision(model, {"amp": True, "precision": "auto"} | plan.run)


def _precision(plan: Plan) -> Precision:
    """Return the precision of the frozen parts; bf16 also stands for fp16, which takes as much."""
    _, precision = precision_of(plan)
    on_cpu = plan.device == "cpu" and precision != "bf16"
    return "fp32" if on_cpu or precision == "fp32" else "bf16"


@lru_cache(maxsize=1)  # several checks of one preflight ask for the same model
def _build_towers(options: tuple[tuple[str, Any], ...]) -> Towers | None:
    try:
        with META:
            return build_towers(META, **dict(options))
    except Exception:  # on dimensions that no tower has, timm and torch raise any kind
        return None


@lru_cache(maxsize=1)
def _build_language_model(
    folder: str, _changed: int, precision: Precision, lora: LoraOptions | None
) -> PreTrainedModel | None:
    try:
        if check_layers(AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers):
            return None
        model = empty_language_model(folder, choose_dtype(precision, META))
        if lora is not None:
            add_lora(model, lora)
        return model
    except Exception:  # on impossible values in config.json, transformers raises any kind
        return None
