"""Visual encoder: pixels → patch features (first frozen part of the model).

Source: EVA-ViT-g as BLIP-2 uses it, built from timm's ``Eva``; settings checked against the
original's recorded activations (``tests/golden``).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import nn

from minigpt4.config.checks import Dimension, Layers, check_ratio


@dataclass(frozen=True)
class VisualEncoderSize:
    """Dimensions of the visual encoder; the defaults are EVA-ViT-g/14 without its 40th block.

    Attributes:
        patch_size: Pixels of each side of a patch.
        embed_dim: Width.
        depth: Blocks.
        num_heads: Attention heads of a block.
        mlp_ratio: Width of a block's MLP, as a multiple of ``embed_dim``.
    """

    patch_size: Dimension = 14
    embed_dim: Dimension = 1408
    depth: Layers = 39
    num_heads: Dimension = 16
    mlp_ratio: Annotated[float, check_ratio] = 4.3637


def build_visual_encoder(
    image_size: int = 224,
    size: VisualEncoderSize | None = None,
    drop_path_rate: float = 0.0,
) -> Eva:
    """An untrained ``Eva`` whose ``forward_features`` gives ``[B, 1 + patches, embed_dim]``.

    There is no norm at the end: ``ln_vision`` follows outside, in fp32.
    """
    size = size or VisualEncoderSize()
    return Eva(
        img_size=image_size,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_ratio=size.mlp_ratio,
        qkv_bias=True,
        qkv_fused=True,
        num_classes=0,
        global_pool="",
        use_post_transformer_norm=False,
        use_fc_norm=False,
        drop_path_rate=drop_path_rate,
    )


def resize_position_embedding(pos_embed: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """``pos_embed`` ``[1, 1 + n, D]`` for another patch grid, as the original interpolates it.

    Bicubic without antialiasing: timm's own default differs by up to 1.5.
    """
    return resample_abs_pos_embed(
        pos_embed.float(), list(grid), num_prefix_tokens=1, interpolation="bicubic", antialias=False
    ).to(pos_embed.dtype)


def shorten_weights(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Matrices and their biases in ``dtype``; norms, embeddings and q/v biases stay in fp32.

    As in the original; so the residual stream is in fp32 too.
    """
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def build_ln_vision(embed_dim: int) -> nn.LayerNorm:
    """The norm on top of the visual encoder (torch's default eps, unlike the encoder's 1e-6)."""
    return nn.LayerNorm(embed_dim)
