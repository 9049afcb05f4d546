"""Names of weights: conversion between ours and the original's.

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


def trained_part(name: str) -> str | None:
    """Return which of ``TRAINABLE`` a parameter belongs to; None: it is always frozen."""
    part = name.partition(".")[0]
    if part == "llama_model" and ".lora_" in name:
        return "lora"
    return part if part in TRAINABLE and part != "lora" else None
