"""``report.html``: folders in, one page out that needs no other file."""

import logging
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from minigpt4.errors import DataError, MiniGPT4Error, one_line
from minigpt4.files import write_atomically
from minigpt4.tools.report import examples, figures
from minigpt4.tools.report.charts import draw
from minigpt4.tools.report.evaluations import Evaluation, is_evaluation, read_evaluation
from minigpt4.tools.report.reading import Notes, number
from minigpt4.tools.report.runs import (
    Run,
    is_run,
    name_runs,
    read_bad_samples,
    read_lost_steps,
    read_run,
)

_PAGE = Path(__file__).parent / "page"
_MAX_CHARTS = 40  # of validations: one takes a third of a second

logger = logging.getLogger(__name__)


class Found:
    """What the folders hold."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.evaluations: list[Evaluation] = []
        self.notes = Notes()


def make_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the charts as PNG files and ``report.html``, whose path is returned.

    Raises:
        MiniGPT4Error: where there is nothing to report on, or the output cannot be written.
    """
    found = read_folders(folders)
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "report.html"
        content = _render(found, output).encode("utf-8", errors="backslashreplace")
    except OSError as error:
        raise MiniGPT4Error(
            f"--output {output}: cannot be written ({one_line(error)}); choose another folder"
        ) from error
    write_atomically(path, lambda file: file.write(content))
    for line in found.notes.lines:
        logger.warning("%s", line)
    return path


def read_folders(folders: Sequence[Path]) -> Found:
    """Read runs and evaluations, each folder once.

    Raises:
        DataError: for a folder that is neither, and where none has anything to show.
    """
    found = Found()
    known: set[Path] = set()
    for folder in folders:
        if folder.resolve() in known:
            found.notes.add(f"{folder}: is given more than once and shown once")
            continue
        known.add(folder.resolve())
        _read_folder(folder, found)
    name_runs(found.runs)
    names = [evaluation.name for evaluation in found.evaluations]
    for evaluation in found.evaluations:
        if names.count(evaluation.name) > 1:
            evaluation.name = str(evaluation.path)
    if not found.evaluations and not any(run.has_figures for run in found.runs):
        told = "; ".join(found.notes.lines)
        raise DataError(f"nothing to report on yet: {told or folders[0]}")
    return found


def _read_folder(folder: Path, found: Found) -> None:
    try:
        if not folder.is_dir():
            what = "is a file; name its folder" if folder.exists() else "no such folder"
            raise DataError(f"{folder}: {what}")
        run, evaluation = is_run(folder), is_evaluation(folder)
        inner = [] if run or evaluation else sorted(folder.glob("**/log.txt"))[:3]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({one_line(error)})") from error
    if not run and not evaluation:
        near = " or ".join(str(file.parent) for file in inner)
        hint = f"; did you mean {near}?" if near else ""
        raise DataError(
            f"{folder}: neither a run's folder (with log.txt and config.yaml) nor an evaluation's "
            f"(with summary.json){hint}"
        )
    if run:
        found.runs.append(read_run(folder, found.notes))
    if evaluation:
        found.evaluations.append(read_evaluation(folder, found.notes))


def _render(found: Found, output: Path) -> str:
    runs, notes = found.runs, found.notes
    training, validation = figures.training_charts(runs), figures.validation_charts(runs)
    if left_out := validation[_MAX_CHARTS:]:
        text = f"{len(left_out)} more figures of validations have no chart here"
        notes.add(f"{text} (the first: {left_out[0].title})")
        del validation[_MAX_CHARTS:]
    draw([*training, *validation], output)
    failures = [example for run in runs for example in examples.failures_of_run(run)]
    for evaluation in found.evaluations:
        failures += [example for part in evaluation.data_sets for example in part.failures]
    sheet, more = examples.make_sheet(runs, notes)
    names = [*(run.name for run in runs), *(one.name for one in found.evaluations)]
    environment = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=ChainableUndefined,  # a config may lack whatever the page shows of it
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("report.html").render(
        title=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        made=f"{datetime.now(timezone.utc):%-d %B %Y, %H:%M} UTC",
        runs=runs,
        figures=figures,
        number=number,
        is_lower_better=examples.is_lower_better,
        training=training,
        validation=validation,
        validation_legend=[name for *_, name in figures.validated(runs)],
        examples=sheet,
        more_examples=more,
        failures=failures,
        evaluations=found.evaluations,
        looks=[(run, looks) for run in runs if (looks := examples.read_looks(run.path, notes))],
        bad_samples=[(r, groups) for r in runs if (groups := read_bad_samples(r.path, notes))],
        lost_steps=[(r, *steps) for r in runs if (steps := read_lost_steps(r.path, notes))[0]],
        differences=figures.differing_keys([run.config for run in runs]) if len(runs) > 1 else [],
        notes=notes.lines,
    )
