"""What went wrong in a run: samples that could not be read, and steps that were not finite."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minigpt4.tools.report.reading import Notes, read_rows

_EXAMPLES = 3
_MOST_STEPS = 20
_KEYS = 4


@dataclass
class BadGroup:
    """Bad samples of one data set and one cause: how many, and a few of them."""

    data_set: str
    cause: str
    count: int
    examples: list[str]


@dataclass(frozen=True)
class LostStep:
    """A line of ``nonfinite.jsonl``, as words."""

    where: str
    loss: str
    module: str
    samples: str


def read_bad_samples(folder: Path, notes: Notes) -> list[BadGroup]:
    """Groups of a run's bad samples, the largest first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for row in read_rows(folder / "bad_samples.jsonl", notes):
        group = str(row.get("dataset", "")), str(row.get("cause", "unknown"))
        counts[group] += 1
        shown = examples.setdefault(group, [])
        if len(shown) < _EXAMPLES:
            place = "/".join(str(row[name]) for name in ("shard", "key") if row.get(name))
            shown.append(f"{place}: {row['detail']}" if row.get("detail") else place)
    return [
        BadGroup(*group, count=number, examples=examples[group])
        for group, number in counts.most_common()
    ]


def read_lost_steps(folder: Path, notes: Notes) -> tuple[list[LostStep], int]:
    """The first lost steps of a run, and how many more there are."""
    found: list[LostStep] = []
    total = 0
    for row in read_rows(folder / "nonfinite.jsonl", notes):
        total += 1
        if total > _MOST_STEPS:
            continue
        keys = row.get("keys")
        keys = [str(key) for key in keys] if isinstance(keys, list) else []
        more = f" and {len(keys) - _KEYS} more" if len(keys) > _KEYS else ""
        where = f"epoch {row.get('epoch')}, step {row.get('step')}, rank {row.get('rank')}"
        module = str(row.get("module") or "every output of the forward pass is finite")
        samples = ", ".join(keys[:_KEYS]) + more
        found.append(LostStep(where, str(row.get("loss")), module, samples))
    return found, total - len(found)
