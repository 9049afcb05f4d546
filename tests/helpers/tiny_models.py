"""The embedded default as a model, and packages that seem not to be installed."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from minigpt4.chat import Chat, load_chat
from minigpt4.config import load_config
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.registry import MODELS
from tests.helpers.repo import ROOT, TINY, tiny_assets


def build_tiny(*options: str) -> MiniGPT4:
    """The embedded default with an untrained projection, on the CPU."""
    config = load_config(TINY, ["model.ckpt=", *options])
    return MODELS.build(config.arch, config.model_options(), device=torch.device("cpu"))


def load_tiny_chat(*options: str) -> Chat:
    """The embedded default with an untrained projection, always the same."""
    torch.manual_seed(0)
    given = [*tiny_assets(), "model.ckpt=", "chat.max_new_tokens=6", *options]
    return load_chat(ROOT / TINY, given)


def hide_package(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Let a package look as if it were not installed."""
    find = importlib.util.find_spec

    def find_others(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == hidden else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
