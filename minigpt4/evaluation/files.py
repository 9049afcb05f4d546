"""Evaluation files: rows of outputs ↔ a folder, their scores, and the summary of both."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.errors import DataError, MiniGPT4Error, one_line
from minigpt4.files import write_atomically
from minigpt4.metrics import Parts, score_rows
from minigpt4.row_files import RowFile

Row = dict[str, Any]  # image, reference, output, score, …; or image, error
# data set → samples, unreadable, each metric's mean, intervals of those, counts
Summary = dict[str, dict[str, Any]]

_SUMMARY = "summary.json"


class OutputFolder:
    """Folder of an evaluation: ``<data set>.jsonl`` and ``summary.json``, each written whole."""

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
        """Write the rows of a data set; an older summary is removed."""
        with contextlib.suppress(OSError):  # the writing fails then, too
            self.path.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self._write(f"{name}.jsonl", "".join(lines))
        (self.path / _SUMMARY).unlink(missing_ok=True)

    def write_scores(self, rows: Mapping[str, Sequence[Row]], summary: Summary) -> None:
        """Write the scored rows of every data set, then their summary."""
        for name, own in rows.items():
            self.write_outputs(name, own)
        self._write(_SUMMARY, json.dumps(summary, ensure_ascii=False, indent=2) + "\n")

    def read_outputs(self) -> dict[str, list[Row]]:
        """Return the rows by data set, without scores.

        Raises:
            DataError: for a folder without any, or with a file of another form.
        """
        files = sorted(self.path.glob("*.jsonl"))
        if not files:
            raise DataError(f"--output {self.path}: holds no outputs (.jsonl) to score again")
        return {file.stem: _read_rows(file) for file in files}

    def _write(self, name: str, text: str) -> None:
        # Half a surrogate pair, which a caption's json may hold, becomes the escape that json has.
        content = text.encode("utf-8", errors="backslashreplace")
        write_atomically(self.path / name, lambda file: file.write(content))

    def _fault(self, text: str) -> MiniGPT4Error:
        return MiniGPT4Error(f"run.output_dir: {self.path} {text}; choose another folder")


def _read_rows(file: Path) -> list[Row]:
    rows = []
    for row in RowFile(file):
        texts = [row.fields.get(key) for key in ("reference", "output")]
        if row.fault or not ("error" in row.fields or all(isinstance(t, str) for t in texts)):
            text = (
                row.fault or "has neither reference and output nor error: no row of an evaluation"
            )
            raise DataError(f"{file}:{row.line}: {text}")
        rows.append({k: value for k, value in row.fields.items() if k not in ("score", "notes")})
    return rows


def score_outputs(
    name: str, rows: Sequence[Row], metrics: Sequence[str], parts: Parts | None
) -> dict[str, Any]:
    """Add its scores to each row of a data set, and return the summary of all.

    Raises:
        DataError: for a data set without a single output.
        MiniGPT4Error: for a metric that fails, or that cannot score any of them.
    """
    check_outputs(name, rows)
    outputs = [row for row in rows if "error" not in row]
    scores = score_rows(metrics, with_references(outputs), parts)
    for row, own, note in zip(outputs, scores.rows, scores.notes, strict=True):
        row |= {"score": own, "notes": note} if note else {"score": own}
    intervals = {metric: list(ends) for metric, ends in scores.intervals().items()}
    counted = {"samples": len(rows), "unreadable": len(rows) - len(outputs)}
    summary: Row = {**counted, **scores.means, "intervals": intervals}
    return {**summary, "counts": scores.counts} if scores.counts else summary


def with_references(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as metrics read them: all references in a list."""
    return [{**row, "references": row.get("references") or [row["reference"]]} for row in rows]


def check_outputs(name: str, rows: Sequence[Row]) -> None:
    """Check that a data set has an output.

    Raises:
        DataError: where it has none.
    """
    if not rows:
        raise DataError(f"datasets.{name}: holds no sample to evaluate")
    if all("error" in row for row in rows):
        first = f"{rows[0]['image']}: {rows[0]['error']}"
        raise DataError(f"datasets.{name}: no readable sample; the first: {first}")


def table(summary: Summary) -> str:
    """Return the summary as text: a line for each metric and for each count."""
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
