"""Manifests: names, shapes and dtypes at full size, compared on the meta device."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig

from minigpt4.config import load_config
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.models.options import TowerOptions
from minigpt4.models.towers import QFormerSize, build_q_former
from minigpt4.models.vision_towers.eva import (
    VisualEncoderSize,
    build_visual_encoder,
    convert_visual_encoder,
)
from minigpt4.registry import MODELS
from minigpt4.weights.checkpoint import trained_weights
from minigpt4.weights.names import convert_q_former
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.comparison import Comparison, Unit, equal, files_of, read_json
from tests.helpers.recorded.model import without_frequencies

Tensors = dict[str, torch.Tensor]

TOKENIZER = GOLDEN / "tokenizer" / "tokenizer.model"
DEPTH = VisualEncoderSize().depth


def find_manifests(folder: Path) -> Iterator[Unit]:
    """Manifests of whole models, of EVA's file and of BLIP-2's."""
    forms: dict[str, Callable[[dict[str, Any]], list[Comparison]]] = {
        "llama_config": compare_model,
        "used": compare_blip2,
        "state_dict": compare_eva,
    }
    for file in files_of(folder, "*.json"):
        content = read_json(file)
        keys = content.keys() if isinstance(content, dict) else ()
        found = [form for key, form in forms.items() if key in keys]
        if found:
            yield Unit(file.stem, "manifest", frozenset({file}), partial(found[0], content))


def on_meta(entries: dict[str, Any]) -> Tensors:
    """Tensors without memory."""
    return {
        name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for name, entry in entries.items()
    }


def describe(tensors: Tensors, dtypes: bool = True) -> dict[str, str]:
    return {
        name: f"{list(value.shape)} {value.dtype if dtypes else ''}"
        for name, value in sorted(tensors.items())
    }


def build_on_meta(facts: dict[str, Any], precision: str = "fp16") -> MiniGPT4:
    """Our preset for a manifest's model, with the language model that the manifest describes."""
    first_release = facts["upstream_version"].startswith("v1")
    q_former = "query_tokens" in facts["state_dict"]
    arch = "mini_gpt4" if first_release else "minigpt4"
    kind = "pretrain_llama2"
    if q_former:
        kind = "pretrain_vicuna" if first_release else "pretrain_vicuna0"
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**facts["llama_config"]).save_pretrained(folder)
        shutil.copy(TOKENIZER, folder)
        file = Path(folder, "model.yaml")
        file.write_text(
            f"model: {{arch: {arch}, model_type: {kind}, llama_model: '{folder}',"
            f" precision: {precision}}}\n"
        )
        options = load_config(file).model_options()
        model: MiniGPT4 = MODELS.build(arch, options, device=torch.device("meta"))
        return model


def compare_model(facts: dict[str, Any]) -> list[Comparison]:
    """Every recorded name becomes one of ours, of the same shape and dtype; nothing is left."""
    model, recorded = build_on_meta(facts), on_meta(facts["state_dict"])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def part(prefix: str) -> Tensors:
        return {n.removeprefix(prefix): v for n, v in recorded.items() if n.startswith(prefix)}

    pairs: list[tuple[str, nn.Module | None, Tensors]] = [
        ("visual_encoder", model.visual_encoder, part("visual_encoder.")),
        ("ln_vision", model.ln_vision, part("ln_vision.")),
        ("q_former", model.q_former, convert_q_former(recorded)),
        ("llama_model", model.llama_model, without_frequencies(part("llama_model."))),
        ("llama_proj", model.llama_proj, part("llama_proj.")),
    ]
    results = [
        equal(f"{name}: names, shapes, dtypes", describe(module.state_dict()), describe(weights))
        for name, module, weights in pairs
        if module is not None
    ]
    queries = {} if model.query_tokens is None else {"query_tokens": model.query_tokens.data}
    kept = sum(len(weights) for _, module, weights in pairs if module is not None) + len(queries)
    saved = {name: recorded[name] for name in facts["checkpoint_keys_stage1"]}
    counted = [p.numel() for p in model.parameters()]
    return [
        *results,
        equal("query_tokens", describe(queries), describe(part_of(recorded, queries))),
        equal("names left over", len(recorded) - kept, len(facts["buffers"])),
        equal("trained", sorted(trained), sorted(facts["trainable"])),
        equal(
            "what a checkpoint's buffers leave",
            describe(trained_weights({"model": saved}, "manifest")),
            describe({n: p.data for n, p in trained.items()}),
        ),
        equal(
            "number of trained parameters",
            sum(p.numel() for p in trained.values()),
            facts["n_trainable_params"],
        ),
        equal("number of parameters", sum(counted), facts["n_params"]),
    ]


def part_of(tensors: Tensors, names: Tensors) -> Tensors:
    return {name: tensors[name] for name in names}


def compare_eva(facts: dict[str, Any]) -> list[Comparison]:
    """EVA's file fills the full-size visual encoder."""
    with torch.device("meta"):
        encoder = build_visual_encoder()
    converted = convert_visual_encoder(on_meta(facts["state_dict"]), DEPTH)
    return [
        equal("names and shapes", describe(encoder.state_dict(), False), describe(converted, False))
    ]


def compare_blip2(facts: dict[str, Any]) -> list[Comparison]:
    """BLIP-2's file fills the Q-Former and ``ln_vision``, whatever else is in it."""
    with torch.device("meta"):
        q_former = build_q_former(VisualEncoderSize().embed_dim)
        ln_vision = nn.LayerNorm(VisualEncoderSize().embed_dim)
    used = on_meta(facts["used"])
    more = used | on_meta(facts["other_keys_expected"])
    whole = more | on_meta(facts["text_branch_not_in_minigpt4"])
    ln = {n.removeprefix("ln_vision."): v for n, v in used.items() if n.startswith("ln_vision.")}
    own = describe(q_former.state_dict(), False)
    queries = [1, TowerOptions().num_query_token, QFormerSize().hidden_size]
    return [
        equal("Q-Former", own, describe(convert_q_former(used), False)),
        equal("with other parts", own, describe(convert_q_former(more), False)),
        equal("with its text branch", own, describe(convert_q_former(whole), False)),
        equal("query_tokens", queries, facts["used"]["query_tokens"]["shape"]),
        equal("ln_vision", describe(ln_vision.state_dict(), False), describe(ln, False)),
    ]
