import pytest
import torch
from torch import nn

from minigpt4.models.towers import cast_to_half
from minigpt4.models.vision_towers.eva import (
    VisualEncoderSize,
    build_visual_encoder,
    convert_visual_encoder,
    resize_position_embedding,
)


def test_resizing_keeps_the_class_token_and_the_dtype() -> None:
    embedding = torch.randn(1, 17, 8).half()
    resized = resize_position_embedding(embedding, (6, 6))
    assert resized.dtype == torch.float16
    assert torch.equal(resized[:, :1], embedding[:, :1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_matrices_are_shortened(dtype: torch.dtype) -> None:
    size = VisualEncoderSize(patch_size=2, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2.0)
    encoder = build_visual_encoder(4, size)
    cast_to_half(encoder, dtype)
    short = {name for name, value in encoder.named_parameters() if value.dtype == dtype}
    assert {name.rsplit(".", 1)[0].split("blocks.0.")[-1] for name in short} == {
        "patch_embed.proj",
        "attn.qkv",
        "attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    }
    assert encoder.pos_embed.dtype == encoder.blocks[0].norm1.weight.dtype == torch.float32


def test_an_unknown_name_in_evas_file_is_not_dropped_in_silence() -> None:
    assert "blocks.0.gamma_1" in convert_visual_encoder({"blocks.0.gamma_1": torch.ones(1)}, 39)
    assert "surprise" in convert_visual_encoder({"surprise": torch.ones(1)}, 39)


def test_encoder_and_ln_vision_have_the_originals_eps() -> None:
    size = VisualEncoderSize(patch_size=2, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2.0)
    encoder = build_visual_encoder(4, size)
    eps = {m.eps for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert eps == {1e-6}
    assert nn.LayerNorm(8).eps == 1e-5
    assert encoder.forward_features(torch.zeros(3, 3, 4, 4)).shape == (3, 5, 8)
