"""A chat over the embedded default, and pictures to show it."""

from pathlib import Path

import pytest
import torch

from minigpt4.chat import Chat, load_chat
from tests.helpers.repo import ROOT, TINY, tiny_assets


@pytest.fixture(scope="package")
def chat(projection: Path) -> Chat:
    torch.manual_seed(0)
    return load_chat(ROOT / TINY, [f"model.ckpt={projection}", *tiny_assets()])
