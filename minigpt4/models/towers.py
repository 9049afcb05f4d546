"""Towers: the frozen eyes, pixels → features (what the projection reads)."""

from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2QFormerModel

PATCHES_PER_TOKEN = 4  # without a Q-Former, so many consecutive patches make one image token


class Towers(nn.Module):
    """Visual encoder, the norm on top of it, and a Q-Former or none.

    Args:
        visual_encoder: This and the next three as :class:`MiniGPT4` has them.
        ln_vision: Likewise.
        q_former: Likewise.
        query_tokens: Likewise.
        compute_dtype: Of the arithmetic.
    """

    def __init__(
        self,
        visual_encoder: nn.Module | None,
        ln_vision: nn.LayerNorm | None,
        q_former: Blip2QFormerModel | None,
        query_tokens: torch.Tensor | None,
        compute_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.visual_encoder = visual_encoder
        self.ln_vision = ln_vision
        self.q_former = q_former
        self.query_tokens = None if query_tokens is None else nn.Parameter(query_tokens)
        self.compute_dtype = compute_dtype

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
            patches = patches[:, 1:].contiguous()
            batch, count, width = patches.shape
            return patches.reshape(batch, count // PATCHES_PER_TOKEN, width * PATCHES_PER_TOKEN)
        assert self.query_tokens is not None
        queries = self.query_tokens.expand(len(image), -1, -1)
        output = self.q_former(query_embeds=queries, encoder_hidden_states=patches)
        assert isinstance(output.last_hidden_state, torch.Tensor)
        return output.last_hidden_state
