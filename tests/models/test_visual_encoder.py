import json
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minigpt4.checkpoint import convert_q_former, convert_visual_encoder
from minigpt4.models.q_former import QFormerSize, build_q_former
from minigpt4.models.visual_encoder import (
    VisualEncoderSize,
    build_ln_vision,
    build_visual_encoder,
    resize_position_embedding,
)
from tests.recorded import GOLDEN, Tensors, part

RESIZES = ["4to6", "6to4", "16to12", "5to5"]


@cache
def recorded_embeddings() -> Tensors:
    return load_file(GOLDEN / "pos_embed_interpolation.safetensors")


@cache
def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (GOLDEN / "manifests" / f"{name}_expected.json").read_text(encoding="utf-8")
    )
    return content


def on_meta(entries: dict[str, Any]) -> Tensors:
    return {name: torch.empty(e["shape"], device="meta") for name, e in entries.items()}


def shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def test_every_recorded_resize_is_tested() -> None:
    assert {key.split(".")[0] for key in recorded_embeddings()} == set(RESIZES)


@pytest.mark.parametrize("resize", RESIZES)
def test_position_embedding_is_resized_as_recorded(resize: str) -> None:
    side = int(resize.split("to")[1])
    ours = resize_position_embedding(recorded_embeddings()[f"{resize}.in"], (side, side))
    torch.testing.assert_close(ours, recorded_embeddings()[f"{resize}.out"], rtol=0, atol=1e-5)


def test_resizing_keeps_the_class_token_and_the_dtype() -> None:
    embedding = recorded_embeddings()["4to6.in"].half()
    resized = resize_position_embedding(embedding, (6, 6))
    assert resized.dtype == torch.float16
    assert torch.equal(resized[:, :1], embedding[:, :1])


def test_evas_file_fills_the_full_size_encoder_exactly() -> None:
    with torch.device("meta"):
        encoder = build_visual_encoder()
    converted = convert_visual_encoder(
        on_meta(manifest("eva_vit_g")["state_dict"]), VisualEncoderSize().depth
    )
    assert shapes(converted) == shapes(encoder.state_dict())


def test_what_else_evas_file_may_hold_is_left_out_by_name() -> None:
    entries = manifest("eva_vit_g")["state_dict"]
    block = {
        name.replace("blocks.38.", "blocks.39."): entry
        for name, entry in entries.items()
        if name.startswith("blocks.38.")
    }
    unused = (
        "norm.weight",
        "norm.bias",
        "fc_norm.weight",
        "head.weight",
        "head.bias",
        "mask_token",
    )
    head = {name: {"shape": [1408]} for name in unused}
    depth = VisualEncoderSize().depth
    more = convert_visual_encoder(on_meta({**entries, **block, **head}), depth)
    assert more.keys() == convert_visual_encoder(on_meta(entries), depth).keys()


def test_an_unknown_name_in_evas_file_is_not_dropped_in_silence() -> None:
    assert "blocks.0.gamma_1" in convert_visual_encoder({"blocks.0.gamma_1": torch.ones(1)}, 39)
    assert "surprise" in convert_visual_encoder({"surprise": torch.ones(1)}, 39)


@pytest.mark.parametrize("with_text_branch", [False, True])
def test_blip2s_file_fills_the_full_size_q_former_exactly(with_text_branch: bool) -> None:
    facts = manifest("blip2_flant5xxl_qformer")
    entries = {**facts["used"], **facts["other_keys_expected"]}
    if with_text_branch:
        entries |= facts["text_branch_not_in_minigpt4"]
    weights = on_meta(entries)
    with torch.device("meta"):
        q_former = build_q_former(VisualEncoderSize().embed_dim)
        ln_vision = build_ln_vision(VisualEncoderSize().embed_dim)
    assert shapes(convert_q_former(weights)) == shapes(q_former.state_dict())
    assert shapes(part(weights, "ln_vision.")) == shapes(ln_vision.state_dict())
    assert weights["query_tokens"].shape == (1, 32, QFormerSize().hidden_size)


def test_encoder_and_ln_vision_have_the_originals_eps() -> None:
    size = VisualEncoderSize(patch_size=2, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2.0)
    encoder = build_visual_encoder(4, size)
    eps = {m.eps for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps == {1e-6}
    assert build_ln_vision(8).eps == 1e-5
    assert encoder.forward_features(torch.zeros(3, 3, 4, 4)).shape == (3, 5, 8)


def test_conversion_does_not_change_what_it_is_given() -> None:
    weights = on_meta(manifest("blip2_flant5xxl_qformer")["used"])
    before = list(weights)
    convert_q_former(weights)
    assert list(weights) == before
