"""Names of weights: conversion between ours, the original's and transformers'.

A vision tower's names are next to it.
"""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch

Tensors = dict[str, torch.Tensor]

_UNUSED_Q_FORMER = re.compile(  # the text branch
    r"embeddings\.(position_ids|word_embeddings|position_embeddings)|pooler\."
    r"|encoder\.layer\.\d+\.(intermediate|output)\."
)
_Q_FORMER_NAMES = (
    ("embeddings.LayerNorm.", "layernorm."),
    (".attention.self.", ".attention.attention."),
    (".crossattention.self.", ".crossattention.attention."),
)
# Our names, and those of transformers' ``Blip2ForConditionalGeneration``; the first match counts.
_BLIP2_NAMES = (
    (r"visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"visual_encoder\.blocks\.(\d+)\.norm", r"vision_model.encoder.layers.\1.layer_norm"),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (
        r"visual_encoder\.blocks\.(\d+)\.attn\.",
        r"vision_model.encoder.layers.\1.self_attn.",
    ),
    (r"visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"ln_vision\.", "vision_model.post_layernorm."),
    (r"q_former\.", "qformer."),
    (r"llama_proj\.", "language_projection."),
    (r"llama_model\.", "language_model."),
)
# Parts that can be trained, by their names in ``model.trainable``; the visual encoder never is.
Trainable = Literal["llama_proj", "q_former", "ln_vision", "query_tokens", "lora"]
TRAINABLE: tuple[Trainable, ...] = get_args(Trainable)


def convert_q_former(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """Return ``Qformer.bert.*`` without its text branch for transformers' ``Blip2QFormerModel``."""
    converted = {}
    for name, value in weights.items():
        own = name.removeprefix("Qformer.bert.")
        if own == name or _UNUSED_Q_FORMER.match(own):
            continue
        for theirs, ours in _Q_FORMER_NAMES:
            own = own.replace(theirs, ours)
        converted[own] = value
    return converted


def published_name(name: str) -> str:
    """Return the name that a weight of our towers has in EVA's or BLIP-2's file."""
    if not name.startswith("q_former."):
        return name.removeprefix("visual_encoder.")
    for theirs, ours in _Q_FORMER_NAMES:
        name = name.replace(ours, theirs)
    return name.replace("q_former.", "Qformer.bert.", 1)


def convert_to_blip2(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """All weights of our model, for transformers' ``Blip2ForConditionalGeneration``.

    Its vision attention has one bias where ours has those of q and v: k has none, zeros here.
    """
    converted = {}
    for name, value in weights.items():
        if name.endswith(".attn.v_bias"):
            continue
        if name.endswith(".attn.q_bias"):
            v_bias = weights[name.replace("q_bias", "v_bias")]
            name = name.replace("q_bias", "qkv.bias")
            value = torch.cat([value, torch.zeros_like(value), v_bias])
        for ours, theirs in _BLIP2_NAMES:
            name, found = re.subn(f"^{ours}", theirs, name)
            if found:
                break
        converted[name] = value
    return converted


def trained_part(name: str) -> str | None:
    """Return which of ``TRAINABLE`` a parameter belongs to; None: it is always frozen."""
    part = name.partition(".")[0]
    if part == "llama_model" and ".lora_" in name:
        return "lora"
    return part if part in TRAINABLE and part != "lora" else None
