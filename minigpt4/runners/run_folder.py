"""The folder of one run: resolved config, log lines, checkpoints."""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from minigpt4.checkpoint import save_atomically
from minigpt4.errors import MiniGPT4Error


class RunFolder:
    """``<output_dir>/<date-time>``; only the main process writes into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, output_dir: str, config: dict[str, Any]) -> "RunFolder":
        """A new folder, with the resolved config in it.

        Raises:
            MiniGPT4Error: when it cannot be written.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            for number in range(1, 100):
                path = Path(output_dir) / (stamp if number == 1 else f"{stamp}-{number}")
                try:
                    path.mkdir(parents=True)
                    break
                except FileExistsError:
                    continue
            (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        except OSError as error:
            raise MiniGPT4Error(
                f"run.output_dir: {output_dir} cannot be written ({error}); choose another folder"
            ) from error
        return cls(path)

    def log(self, **figures: Any) -> None:
        """Append one JSON line to ``log.txt``."""
        try:
            with open(self.path / "log.txt", "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        except OSError as error:
            raise MiniGPT4Error(f"{self.path / 'log.txt'}: cannot be written ({error})") from error

    def save_checkpoint(self, epoch: int, content: dict[str, Any]) -> Path:
        """Write ``checkpoint_<epoch>.pth``, whole or not at all."""
        path = self.path / f"checkpoint_{epoch}.pth"
        save_atomically(content, path)
        return path
