"""Places in the repo, and its entry points run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minigpt4.errors import run_guarded

ROOT = Path(__file__).parents[2]
TINY = "eval_configs/tiny_eval.yaml"

Main = Callable[[], int | None]


def tiny_assets() -> list[str]:
    """Options with absolute paths: module fixtures are made before the working folder is set."""
    assets = ROOT / "assets" / "tiny"
    return [
        f"model.vit_model={assets}/eva_vit.pth",
        f"model.q_former_model={assets}/q_former.pth",
        f"model.llama_model={assets}/llama",
    ]


def error_line(stderr: str) -> str:
    """The one line of an error in what an entry point wrote."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    return lines[0]


@dataclass
class EntryPoint:
    """Runs an entry point in this process; the fixture ``run_entry`` gives one."""

    set_argv: Callable[[list[str]], None]
    read_stderr: Callable[[], str]

    def __call__(self, main: Main, *arguments: object) -> tuple[int, str]:
        """Return the exit code and the text on stderr."""
        self.set_argv(["entry", *map(str, arguments)])
        self.read_stderr()
        try:
            run_guarded(main)
        except SystemExit as exit_:
            return int(exit_.code or 0), self.read_stderr()

    def ok(self, main: Main, *arguments: object) -> str:
        """Return the text on stderr of a call that must succeed."""
        code, stderr = self(main, *arguments)
        assert code == 0, stderr
        return stderr

    def refused(self, main: Main, *arguments: object) -> str:
        """Return the one error line of a call that must end with exit code 2."""
        code, stderr = self(main, *arguments)
        assert code == 2, stderr
        return error_line(stderr)
