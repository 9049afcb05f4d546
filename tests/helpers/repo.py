"""Places in the repo, and the type of the fixture that runs an entry point."""

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
TINY = "eval_configs/tiny_eval.yaml"

EntryPoint = Callable[..., tuple[int, str]]


def tiny_assets() -> list[str]:
    """Options with absolute paths: module fixtures are made before the working folder is set."""
    assets = ROOT / "assets" / "tiny"
    return [
        f"model.vit_model={assets}/eva_vit.pth",
        f"model.q_former_model={assets}/q_former.pth",
        f"model.llama_model={assets}/llama",
    ]
