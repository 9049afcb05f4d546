"""EVA-ViT: pixels → patch features; EVA-ViT-g as BLIP-2 uses it, built from timm's ``Eva``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import nn

from minigpt4.config.checks import Dimension, FileOrUrl, Layers, Positive, check_ratio
from minigpt4.errors import CheckpointError, Fault
from minigpt4.registry import VISION_TOWERS
from minigpt4.weights.checkpoint import kind_of_file
from minigpt4.weights.download import EVA_VIT_G
from minigpt4.weights.names import Tensors

# Parts of EVA's file that are not used here.
_UNUSED_EVA = re.compile(r"blocks\.(\d+)\.|norm\.|fc_norm\.|head\.|lm_head\.|mask_token|rope\.")
_EVA_SETTINGS: dict[str, Any] = {
    "qkv_bias": True,
    "qkv_fused": True,
    "num_classes": 0,
    "global_pool": "",
    "use_post_transformer_norm": False,
    "use_fc_norm": False,
}


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


EVA_VIT_G_SIZE = VisualEncoderSize()


@VISION_TOWERS.register("eva_vit_g")
@dataclass(frozen=True)
class EvaVisionTower:
    """EVA-ViT-g, or one of the same family in other dimensions.

    Attributes:
        weights: File or URL of the weights (EVA's names).
        image_size: Pixels of each side; other sizes resize the position embedding.
        size: Dimensions.
    """

    weights: FileOrUrl = EVA_VIT_G
    image_size: Positive = 224
    size: VisualEncoderSize = EVA_VIT_G_SIZE
    prefix_tokens = 1

    @property
    def width(self) -> int:
        return self.size.embed_dim

    @property
    def tokens(self) -> int:
        return (self.image_size // self.size.patch_size) ** 2

    def errors(self) -> Iterator[Fault]:
        size = self.size
        if size.embed_dim % size.num_heads:
            text = f"{size.embed_dim} is no multiple of the number of heads, {size.num_heads}"
            yield Fault("size.embed_dim", text)
        if self.image_size < size.patch_size:
            text = f"{self.image_size} pixels are less than a patch ({size.patch_size})"
            yield Fault("image_size", text)

    def build(self) -> nn.Module:
        return build_visual_encoder(self.image_size, self.size)

    def convert(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not isinstance(weights, Mapping) or "pos_embed" not in weights:
            text = f"not a visual encoder (no pos_embed in it){kind_of_file(weights)}"
            raise CheckpointError(f"{self.weights}: {text}")
        converted = convert_visual_encoder(weights, self.size.depth)
        if converted["pos_embed"].shape[1] != 1 + self.tokens:
            grid = (self.image_size // self.size.patch_size,) * 2
            converted["pos_embed"] = resize_position_embedding(converted["pos_embed"], grid)
        return converted


def build_visual_encoder(image_size: int = 224, size: VisualEncoderSize | None = None) -> Eva:
    """Return an untrained ``Eva`` without a norm at the end: ``ln_vision`` follows outside."""
    return Eva(img_size=image_size, **asdict(size or VisualEncoderSize()), **_EVA_SETTINGS)


def resize_position_embedding(pos_embed: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Interpolate ``[1, 1 + n, D]`` for another grid without antialiasing, as the original does."""
    return resample_abs_pos_embed(
        pos_embed.float(), list(grid), num_prefix_tokens=1, interpolation="bicubic", antialias=False
    ).to(pos_embed.dtype)


def convert_visual_encoder(weights: Mapping[str, torch.Tensor], depth: int) -> Tensors:
    """Return EVA's weights for timm's ``Eva``, without unused parts and later blocks."""
    matches = {name: _UNUSED_EVA.match(name) for name in weights}
    unused = {n for n, m in matches.items() if m and (m[1] is None or int(m[1]) >= depth)}
    return {name: value for name, value in weights.items() if name not in unused}
