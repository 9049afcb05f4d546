"""Overlays: colour where the share is, over the picture as the model sees it."""

import numpy as np
import torch
from PIL import Image

from minigpt4.chat import Chat
from minigpt4.tools.interpret import overlay, picture_seen


def changed(picture: Image.Image, shares: torch.Tensor) -> np.ndarray:
    """How much redder each pixel becomes."""
    over, bare = overlay(picture, shares), overlay(picture, torch.full((8, 8), 1 / 64))
    return np.asarray(over, dtype=int)[..., 0] - np.asarray(bare, dtype=int)[..., 0]


def test_color_lies_on_the_patch_and_nowhere_else():
    shares = torch.full((8, 8), 0.01)
    shares[1, 6] = 0.37
    warmer = changed(Image.new("RGB", (160, 160), (90, 90, 90)), shares)
    y, x = np.unravel_index(warmer.argmax(), warmer.shape)
    assert (int(y) // 20, int(x) // 20) == (1, 6)
    assert warmer.max() > 60
    assert not warmer[80:].any()
    assert not warmer[:, :80].any()


def test_what_is_nearly_even_stays_nearly_bare():
    grey = Image.new("RGB", (160, 160), (90, 90, 90))
    slight = torch.full((8, 8), 1.0)
    slight[1, 6] = 1.1
    strong = slight.clone()
    strong[1, 6] = 3
    assert 0 < changed(grey, slight).max() < changed(grey, strong).max() / 4
    nothing = overlay(grey, torch.zeros(8, 8))
    assert len({*nothing.get_flattened_data()}) == 1


def test_the_picture_is_what_the_model_sees(chat: Chat):
    wide = Image.linear_gradient("L").resize((300, 90)).convert("RGB")
    seen = picture_seen(chat, wide)
    assert seen.size == (112, 112)
    expected = np.asarray(wide.resize((112, 112), Image.Resampling.BICUBIC), dtype=int)
    assert abs(np.asarray(seen, dtype=int) - expected).max() <= 1
    assert picture_seen(chat, wide, 224).size == (224, 224)
