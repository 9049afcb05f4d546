"""Chats over the embedded default and over small language models of other families."""

from pathlib import Path

import pytest

from minigpt4.chat import Chat
from tests.tools.interpret.loading import load


@pytest.fixture(scope="package")
def chat(projection: Path) -> Chat:
    return load(f"model.ckpt={projection}")
