"""Check a folder of recordings of the original against this program."""

import argparse
import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.recorded.comparison import Comparison, Unit
from tests.helpers.recorded.data import find_data
from tests.helpers.recorded.manifests import find_manifests
from tests.helpers.recorded.model import find_models
from tests.helpers.recorded.training import find_trajectories
from tests.helpers.recorded.words import find_conversations, find_tokenizers

FORMS = (
    find_tokenizers,
    find_conversations,
    find_data,
    find_models,
    find_trajectories,
    find_manifests,
)


def find_units(folder: Path) -> list[Unit]:
    """Every recording that a folder holds."""
    return [unit for find in FORMS for unit in find(folder)]


def unchecked_files(folder: Path, units: list[Unit]) -> list[Path]:
    """Files that no recording reads; a README says what the others are."""
    read = {file.resolve() for unit in units for file in unit.files}
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [f for f in files if f.name != "README.md" and f.resolve() not in read]


def check_unit(unit: Unit) -> list[Comparison]:
    """All figures of a recording; one that cannot be read is a figure that does not hold."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a run's progress bar
            results = unit.check()
    except Exception as error:  # whatever a damaged recording raises
        note = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [Comparison("cannot be checked", math.inf, math.inf, note=note)]
    if results:
        return results
    return [Comparison("nothing to check in it", math.inf, math.inf)]


def check_folder(folder: Path) -> Iterator[tuple[str, str, Comparison]]:
    """Name, kind and figure of everything in a folder; unchecked files and nothing at all fail."""
    units = find_units(folder)
    for unit in units:
        for result in check_unit(unit):
            yield unit.name, unit.kind, result
    for file in unchecked_files(folder, units):
        name = str(file.relative_to(folder))
        yield name, "file", Comparison("no check reads it", math.inf, math.inf)
    if not units:
        yield str(folder), "folder", Comparison("nothing was checked", math.inf, math.inf)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="also write every line into this file")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        print(f"error: {given.folder}: no such folder", file=sys.stderr)
        return 2
    lines, missed = [], 0
    for name, kind, result in check_folder(given.folder):
        missed += not result.holds
        state = "ok" if result.holds else "FAILED"
        error = "exact" if result.error == 0 else f"{result.error:.2e}"
        print(
            f"{state:<6} {name:<28} {kind:<12} {result.what:<46} "
            f"{error:<9} limit {result.limit} {result.note}".rstrip(),
            flush=True,
        )
        lines.append(
            {"case": name, "kind": kind, "what": result.what, "holds": result.holds}
            | {"error": f"{result.error:.3e}", "limit": result.limit, "note": result.note}
        )
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1) + "\n")
    print(f"{len(lines)} figures, {missed} over their limit or unchecked")
    return 1 if missed else 0
