"""The errors a user can cause: each carries one line saying what, where and how to fix it."""

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple, NoReturn


class MiniGPT4Error(Exception):
    """Something the user can fix; entry points show it as one line and exit with code 2.

    ``rank_local`` marks what one process of several met alone: that process reports it.
    """

    rank_local = False
    exit_code = 2


class ConfigError(MiniGPT4Error):
    """A fault in the YAML file, its presets or ``--options``."""


class CheckpointError(MiniGPT4Error):
    """A weights file that is missing, damaged or does not fit the model."""


class DataError(MiniGPT4Error):
    """A data set, image or text that cannot be read."""


class NothingCheckedError(MiniGPT4Error):
    """A program that compares or measures was given nothing; exit code 1, as for a failure."""

    exit_code = 1


class InterruptedRunError(MiniGPT4Error):
    """A run that was told to stop by a signal, with everything saved; exit code 128 + signal."""

    def __init__(self, number: int, step: int, folder: object) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}, which is saved in "
            f"{folder}; the same command goes on with --options run.resume=auto"
        )
        self.exit_code = 128 + number


class Fault(NamedTuple):
    """An error in a config: its dotted key, and what is wrong with it."""

    key: str
    text: str


def near(word: object, known: Iterable[str]) -> str | None:
    """Return the known word that was most likely meant, in upper or lower case."""
    folded = {name.casefold(): name for name in sorted(known)}
    close = difflib.get_close_matches(str(word)[:100].casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def nearest(word: object, known: Iterable[str]) -> str:
    """Return a hint for an unknown word: the nearest known one, else all of them."""
    names = sorted(known)
    close = near(word, names)
    return f"did you mean {close!r}?" if close else f"known: {', '.join(names) or 'none'}"


def one_line(error: BaseException, longest: int = 300) -> str:
    """Return an error's text as one line; its type where it has none."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def shown(value: object, longest: int = 100) -> str:
    """Return a value of a config as a message shows it, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= longest else text[:longest] + "…"


def run_guarded(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point and exit: 2 after a user's mistake (one line), 128 + signal after one.

    Under torchrun every process meets the same mistake, and only rank 0 tells it; what one process
    met alone it tells itself.
    """
    try:
        sys.exit(main() or 0)
    except MiniGPT4Error as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            mark = "" if isinstance(error, InterruptedRunError) else "error: "
            print(f"{mark}{error}", file=sys.stderr)
        elif error.rank_local:
            print(f"error: rank {rank}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
