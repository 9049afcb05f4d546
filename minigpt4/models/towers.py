"""Towers: vision tower and Q-Former, pixels → features (what the projection reads).

Source of the Q-Former: BLIP-2's, query branch only, as transformers' ``Blip2QFormerModel``.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.config.checks import Dimension, Layers

PATCHES_PER_TOKEN = 4  # without a Q-Former, so many consecutive patches make one image token


@dataclass(frozen=True)
class QFormerSize:
    """Dimensions of the Q-Former; the defaults are BLIP-2's (BERT-base).

    Attributes:
        hidden_size: Width.
        num_hidden_layers: Layers.
        num_attention_heads: Attention heads of a layer.
        intermediate_size: Width of the feed-forward part.
        cross_attention_frequency: Every how many layers one looks at the image.
    """

    hidden_size: Dimension = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Dimension = 12
    intermediate_size: Dimension = 3072
    cross_attention_frequency: Dimension = 2


def build_q_former(encoder_dim: int, size: QFormerSize | None = None) -> Blip2QFormerModel:
    """Return an untrained Q-Former that reads features of width ``encoder_dim``."""
    dimensions = asdict(size or QFormerSize()) | {"encoder_hidden_size": encoder_dim}
    return Blip2QFormerModel(Blip2QFormerConfig(**dimensions, use_qformer_text_input=False))


def cast_to_half(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Cast matrices and their biases to ``dtype``; as in the original, the rest stays in fp32."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


class Towers(nn.Module):
    """Visual encoder, the norm on top of it, and a Q-Former or none.

    Args:
        visual_encoder: Encoder whose ``forward_features`` gives ``[B, prefix + P, Dv]``; None, like
            the next three, where all images come as cached features.
        ln_vision: LayerNorm(Dv), computed in fp32.
        q_former: Q-Former in fp32, or None for the variant without it.
        query_tokens: Learned queries ``[1, Q, Dq]``; None without a Q-Former.
        compute_dtype: Dtype of the arithmetic.
        prefix_tokens: Features before those of the patches, left out without a Q-Former.
    """

    def __init__(
        self,
        visual_encoder: nn.Module | None,
        ln_vision: nn.LayerNorm | None,
        q_former: Blip2QFormerModel | None,
        query_tokens: torch.Tensor | None,
        compute_dtype: torch.dtype,
        prefix_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.visual_encoder, self.ln_vision, self.q_former = visual_encoder, ln_vision, q_former
        self.query_tokens = None if query_tokens is None else nn.Parameter(query_tokens)
        self.compute_dtype, self.prefix_tokens = compute_dtype, prefix_tokens

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        half = self.compute_dtype != torch.float32
        return torch.autocast(device.type, dtype=self.compute_dtype, enabled=half)

    def encode_frozen(self, image: torch.Tensor) -> torch.Tensor:
        """Return features ``[B, Q, Dq]`` of images, or ``[B, P / 4, 4 Dv]`` without a Q-Former."""
        assert self.visual_encoder is not None
        assert self.ln_vision is not None
        with torch.no_grad():
            patches = self.visual_encoder.forward_features(image)  # type: ignore[operator]
        patches = self.ln_vision(patches.float())
        if self.q_former is None:
            # In one piece, as cached ones come: a linear layer computes a view another way.
            patches = patches[:, self.prefix_tokens :].contiguous()
            return patches.unflatten(1, (-1, PATCHES_PER_TOKEN)).flatten(2)
        assert self.query_tokens is not None
        queries = self.query_tokens.expand(len(image), -1, -1)
        output = self.q_former(query_embeds=queries, encoder_hidden_states=patches)
        return output.last_hidden_state
