"""The chats whose insides the tests of this folder look at."""

import torch

from minigpt4.chat import Chat, load_chat
from tests.helpers.repo import ROOT, TINY, tiny_assets


def load(*options: str) -> Chat:
    """The embedded default with an untrained projection, always the same."""
    torch.manual_seed(0)
    return load_chat(
        ROOT / TINY, [*tiny_assets(), "model.ckpt=", "chat.max_new_tokens=6", *options]
    )
