"""Towers: vision tower and Q-Former, pixels → features (what the projection reads).

Source of the Q-Former: BLIP-2's, query branch only, as transformers' ``Blip2QFormerModel``.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
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
    """An untrained Q-Former reading features of width ``encoder_dim``."""
    size = size or QFormerSize()
    return Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            intermediate_size=size.intermediate_size,
            cross_attention_frequency=size.cross_attention_frequency,
            encoder_hidden_size=encoder_dim,
            use_qformer_text_input=False,
        )
    )


def cast_to_half(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Cast matrices and their biases to ``dtype``; norms, embeddings and q/v biases stay in fp32.

    As in the original; so the residual stream is in fp32 too.
    """
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
        self.visual_encoder = visual_encoder
        self.ln_vision = ln_vision
        self.q_former = q_former
        self.query_tokens = None if query_tokens is None else nn.Parameter(query_tokens)
        self.compute_dtype = compute_dtype
        self.prefix_tokens = prefix_tokens

    @property
    def features_width(self) -> int:
        """Dq, or 4 Dv without a Q-Former."""
        assert self.ln_vision is not None
        if self.q_former is None:
            return PATCHES_PER_TOKEN * self.ln_vision.normalized_shape[0]
        return int(self.q_former.config.hidden_size)

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The compute dtype's arithmetic, wherever torch has it in half precision."""
        half = self.compute_dtype != torch.float32
        return torch.autocast(device.type, dtype=self.compute_dtype, enabled=half)

    def encode_frozen(self, image: torch.Tensor) -> torch.Tensor:
        """Features ``[B, Q, Dq]``, or ``[B, P / 4, 4 Dv]`` without Q-Former, of ``[B, 3, s, s]``.

        A gradient reaches what is trained of it, if anything is; the visual encoder never is.
        """
        assert self.visual_encoder is not None
        assert self.ln_vision is not None
        weight = self.ln_vision.weight
        with torch.no_grad():
            patches = self.visual_encoder.forward_features(image)  # type: ignore[operator]
        patches = functional.layer_norm(
            patches.float(),
            self.ln_vision.normalized_shape,
            weight.float(),
            self.ln_vision.bias.float(),
            self.ln_vision.eps,
        )
        if self.q_former is None:
            # In one piece, as cached ones come: a linear layer computes a view another way.
            patches = patches[:, self.prefix_tokens :].contiguous()
            batch, count, width = patches.shape
            return patches.reshape(batch, count // PATCHES_PER_TOKEN, width * PATCHES_PER_TOKEN)
        assert self.query_tokens is not None
        queries = self.query_tokens.expand(len(image), -1, -1)
        output = self.q_former(query_embeds=queries, encoder_hidden_states=patches)
        assert isinstance(output.last_hidden_state, torch.Tensor)
        return output.last_hidden_state
