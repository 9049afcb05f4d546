"""Chats over the embedded default and over small language models of other families."""

from pathlib import Path

import pytest

from minigpt4.chat import Chat
from tests.helpers.tiny_models import load_tiny_chat as load


@pytest.fixture(scope="package")
def chat(projection: Path) -> Chat:
    return load(f"model.ckpt={projection}")
