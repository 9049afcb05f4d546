"""A chat over the embedded default, and pictures to show it."""

from pathlib import Path

import pytest
import torch

from minigpt4.chat import Chat, load_chat
from minigpt4.tools.tiny_world.data_sets import read_heldout
from tests.conftest import ROOT

TINY = ROOT / "eval_configs" / "tiny_eval.yaml"


def tiny_assets() -> list[str]:
    """Absolute paths: module fixtures are made before the working folder is set."""
    assets = ROOT / "assets" / "tiny"
    return [
        f"model.vit_model={assets}/eva_vit.pth",
        f"model.q_former_model={assets}/q_former.pth",
        f"model.llama_model={assets}/llama",
    ]


@pytest.fixture(scope="package")
def chat(projection: Path) -> Chat:
    torch.manual_seed(0)
    return load_chat(TINY, [f"model.ckpt={projection}", *tiny_assets()])


@pytest.fixture
def pictures(scenes: Path) -> list[Path]:
    return [file for _, file in read_heldout(scenes / "heldout_seen")]
