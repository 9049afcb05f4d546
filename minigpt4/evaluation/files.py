"""Evaluation files: rows of outputs ↔ a folder, their scores, and the summary of both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.errors import DataError, MiniGPT4Error, one_line
from minigpt4.files import write_atomically
from minigpt4.metrics import Parts, score_rows

Row = dict[str, Any]  # image, reference, output, score, …; or image, error
# data set → samples, unreadable, each metric's mean, intervals of those, counts
Summary = dict[str, dict[str, Any]]

_SUMMARY = "summary.json"


class OutputFolder:
    """The folder of one evaluation: ``<data set>.jsonl`` and ``summary.json``.

    Each file is written whole or not at all.

    Args:
        path: Made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, datasets: Sequence[str]) -> None:
        """Refuse what another evaluation left here; one of the same data sets is replaced.

        Raises:
            MiniGPT4Error: for a summary that names other data sets, or is another program's.
        """
        try:
            found = json.loads((self.path / _SUMMARY).read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise self._fault(f"its {_SUMMARY} cannot be read ({one_line(error)})") from error
        others = [name for name in found if name not in datasets] if isinstance(found, dict) else []
        if others or not isinstance(found, dict):
            told = f"of {', '.join(map(str, others[:3]))}" if others else "of another program"
            raise self._fault(f"holds the results {told}")

    def write_outputs(self, name: str, rows: Sequence[Row]) -> None:
        """Rows of a data set; a summary that was there tells of others and goes."""
        self._make()
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self._write(f"{name}.jsonl", "".join(lines))
        (self.path / _SUMMARY).unlink(missing_ok=True)

    def write_scores(self, rows: Mapping[str, Sequence[Row]], summary: Summary) -> None:
        """Scored rows of every data set, then their summary."""
        for name, own in rows.items():
            self.write_outputs(name, own)
        self._write(_SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")

    def read_outputs(self) -> dict[str, list[Row]]:
        """Rows by data set, as they were before they were scored.

        Raises:
            DataError: for a folder without any, or with a file of another form.
        """
        files = sorted(self.path.glob("*.jsonl"))
        if not files:
            raise DataError(f"--output {self.path}: holds no outputs (.jsonl) to score again")
        return {file.stem: _read_rows(file) for file in files}

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"run.output_dir: {self.path} cannot be written ({error})"
            raise MiniGPT4Error(f"{text}; choose another folder") from error

    def _write(self, name: str, text: str) -> None:
        # Half a surrogate pair, which a caption's json may hold, becomes the escape that json has.
        content = text.encode("utf-8", errors="backslashreplace")
        write_atomically(self.path / name, lambda file: file.write(content))

    def _fault(self, text: str) -> MiniGPT4Error:
        return MiniGPT4Error(f"run.output_dir: {self.path} {text}; choose another folder")


def _read_rows(file: Path) -> list[Row]:
    rows = []
    try:
        # Not splitlines: a text may hold what Unicode, but not json, ends a line with.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)})") from error
    for number, line in enumerate(lines if lines != [""] else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not json ({one_line(error)})") from error
        given = isinstance(row, dict) and (
            "error" in row or all(isinstance(row.get(key), str) for key in ("reference", "output"))
        )
        if not given:
            text = "has neither reference and output nor error: no row of an evaluation"
            raise DataError(f"{file}:{number}: {text}")
        rows.append({key: value for key, value in row.items() if key not in ("score", "notes")})
    return rows


def score_outputs(
    name: str, rows: Sequence[Row], metrics: Sequence[str], parts: Parts
) -> dict[str, Any]:
    """The summary of a data set, to each of whose rows its scores are added.

    Raises:
        DataError: for a data set without a single output.
        MiniGPT4Error: for a metric that fails, or cannot score a single one of them.
    """
    outputs, unreadable = check_outputs(name, rows)
    known = [{**row, "references": row.get("references") or [row["reference"]]} for row in outputs]
    scores = score_rows(metrics, known, parts)
    for row, own, note in zip(outputs, scores.rows, scores.notes, strict=True):
        row["score"] = own
        if note:
            row["notes"] = note
    intervals = {metric: list(ends) for metric, ends in scores.intervals().items()}
    counted = {"samples": len(rows), "unreadable": unreadable}
    summary: Row = {**counted, **scores.means, "intervals": intervals}
    return {**summary, **({"counts": scores.counts} if scores.counts else {})}


def check_outputs(name: str, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows with an output, and the number of those without.

    Raises:
        DataError: for a data set without a single output.
    """
    outputs = [row for row in rows if "error" not in row]
    if not rows:
        raise DataError(f"datasets.{name}: holds no sample to evaluate")
    if not outputs:
        first = f"{rows[0]['image']}: {rows[0]['error']}"
        raise DataError(f"datasets.{name}: no readable sample; the first: {first}")
    return outputs, len(rows) - len(outputs)


def table(summary: Summary) -> str:
    """The summary as people read it: a line for each metric, and for what was counted."""
    lines = [("data set", "metric", "mean", "95 % interval")]
    told = []
    for name, figures in summary.items():
        for metric, ends in figures["intervals"].items():
            low, high = (f"{end:.4f}" for end in ends)
            lines.append((name, metric, f"{figures[metric]:.4f}", f"{low} to {high}"))
        told.append(f"{name}: {figures['samples']} samples, {figures['unreadable']} unreadable")
        for metric, counts in figures.get("counts", {}).items():
            found = ", ".join(f"{key} {count}" for key, count in counts.items())
            told.append(f"{name}: {metric}: {found}")
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    shown = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*(shown if len(lines) > 1 else []), *told])
