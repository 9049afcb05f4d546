"""TensorBoard and Weights & Biases, as options: one that fails is left out, and the run continues.

accelerate's trackers are not used: they ignore an absent library silently, and let every later
failure end the run.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from omegaconf import OmegaConf

from minigpt4.errors import one_line

TrackerName = Literal["tensorboard", "wandb"]
_START_SECONDS = 30  # for wandb's server to answer; offline after that
_FINISH_SECONDS = 60  # for wandb's last upload; the rest is in the run's folder

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes a run's figures; may raise any exception."""

    def log(self, figures: Mapping[str, float], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoardTracker:
    """Event files in ``<folder>/tensorboard``; those of an interrupted launch are cut."""

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = first_step + 1 if first_step else None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        if config:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
            indented = "".join(f"    {line}\n" for line in text.splitlines())  # code, in Markdown
            self._writer.add_text("config", indented, first_step)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # an open page shows them; a failure is reported here

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """A run at Weights & Biases, or kept offline in ``<folder>/wandb``; never prompts.

    wandb's own settings decide (``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_DIR``, …). Without an
    API key, or when its server does not answer, the figures are kept offline. Every launch is a
    run of its own there, as a run cannot take back steps; those of one folder form a group.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], first_step: int) -> None:
        import wandb

        own = wandb.setup(wandb.Settings(silent=True, console="off")).settings
        limits = wandb.Settings(init_timeout=_START_SECONDS, finish_timeout=_FINISH_SECONDS)

        def start(mode: Any) -> Any:
            return wandb.init(
                project=own.project or "minigpt4",
                dir=os.environ.get("WANDB_DIR") or folder,
                name=own.run_name or folder.name,
                group=own.run_group or folder.name,
                config=dict(config),
                mode=mode,
                settings=limits,
            )

        if own.mode not in ("online", "shared"):
            self._run = start(own.mode)
            return
        reason = "no API key is configured"
        try:
            if wandb.login(prompt=False, verify=False):
                self._run = start(own.mode)
                logger.info("wandb: %s", self._run.url)
                return
        except Exception as error:
            reason = one_line(error).partition(" Consider increasing")[0]  # no setting of ours
        self._run = start("offline")
        text = "run.trackers: wandb keeps its figures offline (%s); later: wandb sync %s"
        logger.warning(text, reason, Path(self._run.dir).parent)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_KNOWN: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


class Trackers:
    """The trackers of ``run.trackers`` that work; a failing one is logged in one line, left out.

    Args:
        names: Names of trackers.
        folder: Folder of the run.
        config: Resolved config of the run.
        first_step: Steps that an interrupted run had done already.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        config: Mapping[str, Any] | None = None,
        first_step: int = 0,
    ) -> None:
        self._working: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                self._working[name] = _KNOWN[name](folder, config or {}, first_step)
            except Exception as error:
                self._leave_out(name, error)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures; ``step`` counts through the whole run, from 1."""
        for name, tracker in list(self._working.items()):
            try:
                tracker.log(figures, step)
            except Exception as error:
                del self._working[name]
                self._leave_out(name, error)

    def close(self, failed: bool = False) -> None:
        """Let them finish; ``failed``: the run ended with an error."""
        while self._working:
            name, tracker = self._working.popitem()
            try:
                tracker.close(failed)
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        remedy = f"; pip install -e '.[{name}]'" if isinstance(error, ImportError) else ""
        text = "run.trackers: the run goes on without %s (%s)%s"
        logger.warning(text, name, one_line(error), remedy)
