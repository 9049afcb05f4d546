"""What a check returns: one figure, its worst error and its limit."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

RTOL, ATOL = 1e-4, 1e-5
LOGITS_ATOL = 1e-4
LOSS_ATOL = 1e-5
SHARE = 1e-5  # of the largest entry: gradients


@dataclass(frozen=True)
class Comparison:
    """One figure: the worst error, what is allowed, and how much of that it is (1 is the limit)."""

    what: str
    error: float
    share: float
    limit: str = "equal"
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.share <= 1.0  # False for nan


@dataclass(frozen=True)
class Unit:
    """One recording of a folder: the files that it reads, and the check of all of them."""

    name: str
    kind: str
    files: frozenset[Path]
    check: Callable[[], list[Comparison]] = field(compare=False)


class Recorded(dict[str, torch.Tensor]):
    """Tensors of a file; knows which of them nobody has asked for."""

    def __init__(self, content: Path | dict[str, torch.Tensor]) -> None:
        super().__init__(load_file(content) if isinstance(content, Path) else content)
        self._unread = set(self)

    def __getitem__(self, name: str) -> torch.Tensor:
        self._unread.discard(name)
        return super().__getitem__(name)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The entries under a prefix, without it."""
        return {n.removeprefix(prefix): self[n] for n in self if n.startswith(prefix)}

    def all_read(self) -> Comparison:
        """Nothing is left that no check has asked for."""
        return equal("every tensor is checked", sorted(self._unread), [])


def compare(
    what: str, ours: torch.Tensor, theirs: torch.Tensor, atol: float | None = None
) -> Comparison:
    """``|ours - theirs|`` against ``atol + RTOL * |theirs|``.

    Where all recorded values are small (below 1), so is the default ``atol``.
    """
    if ours.shape != theirs.shape:
        return _different(f"{what} (shape)", list(ours.shape), list(theirs.shape))
    if not theirs.numel():
        return _different(f"{what} (empty)", "nothing", "something")
    if atol is None:
        atol = ATOL * min(1.0, theirs.abs().max().item())
    error = (ours - theirs).abs()
    share = (error / (atol + RTOL * theirs.abs())).max().item()
    return Comparison(what, error.max().item(), share, f"{atol:.1e} + {RTOL:.0e} |x|")


def within(what: str, error: float, allowed: float) -> Comparison:
    """An error against a fixed limit."""
    share = error / allowed if allowed else (0.0 if error == 0 else math.inf)
    return Comparison(what, error, share, f"{allowed:.1e}")


def equal(what: str, ours: object, theirs: object) -> Comparison:
    """Exactly the same; the first place that is not is told."""
    if ours == theirs:
        return Comparison(what, 0.0, 0.0)
    return _different(what, *_first_difference(ours, theirs))


def _first_difference(ours: object, theirs: object) -> tuple[object, object]:
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return next(_first_difference(a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    return ours, theirs


def _different(what: str, ours: object, theirs: object) -> Comparison:
    note = f"ours {_short(ours)}, recorded {_short(theirs)}"
    return Comparison(what, math.inf, math.inf, note=note)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"…{text[-70:]}"


def failures(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for every comparison that does not hold."""
    return [
        f"{result.what}: error {result.error:.3g}, limit {result.limit} {result.note}".rstrip()
        for result in comparisons
        if not result.holds
    ]


def read_json(file: Path) -> Any:
    """The content of a file; None where it is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None


def files_of(folder: Path, pattern: str) -> Iterator[Path]:
    """Files of a folder and those below, in order."""
    return iter(sorted(file for file in folder.rglob(pattern) if file.is_file()))
