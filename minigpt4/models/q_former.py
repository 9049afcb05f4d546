"""Q-Former: patch features → a fixed number of query features (second frozen part).

Source: BLIP-2's Q-Former, query branch only, built from transformers' ``Blip2QFormerModel``.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from minigpt4.config.checks import Dimension, Layers


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


def build_query_tokens(num_query_token: int, hidden_size: int) -> nn.Parameter:
    """Learned queries ``[1, num_query_token, hidden_size]`` (untrained)."""
    return nn.Parameter(torch.randn(1, num_query_token, hidden_size) * 0.02)
