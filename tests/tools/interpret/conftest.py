"""Chats over the embedded default and over small language models of other families."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt4.chat import Chat, load_chat
from minigpt4.tools.tiny_world.data_sets import read_heldout
from tests.chat.conftest import TINY, tiny_assets

LoadChat = Callable[..., Chat]


def load(*options: str) -> Chat:
    """The embedded default with an untrained projection, always the same."""
    torch.manual_seed(0)
    return load_chat(TINY, [*tiny_assets(), "model.ckpt=", "chat.max_new_tokens=6", *options])


@pytest.fixture(scope="package")
def chat(projection: Path) -> Chat:
    return load(f"model.ckpt={projection}")


@pytest.fixture
def pictures(scenes: Path) -> list[Path]:
    return [file for _, file in read_heldout(scenes / "heldout_seen")]
