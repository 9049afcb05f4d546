"""Oxford-HIC's csv files and the names of its pictures → tables to choose from.

First half of ``prepare_oxford_hic.py``. The tables lie in a temporary database, which joins and
sorts any number of rows in the same memory.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.bad_rows import BadRows
from dataset.pack_shards import SUFFIXES
from minigpt4.errors import DataError, MiniGPT4Error, one_line, shown
from minigpt4.row_files import Row, RowFile

NOTHING = ("", "nan", "<na>")  # what pandas and others write for no value
_LONGEST_ID = 200  # bytes; a file's name has at most 255
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_CACHE_KB = 8_000  # more saves no time
_TABLES = """
CREATE TABLE images (image_id TEXT PRIMARY KEY, url TEXT, preference INT, file TEXT) WITHOUT ROWID;
CREATE TABLE captions (image_id TEXT, line INT, score REAL, draw INT, caption TEXT);
CREATE TABLE kept (split TEXT, image_id TEXT, file TEXT, draw INT, caption TEXT);
"""


@contextlib.contextmanager
def temporary_database(file: Path) -> Iterator[sqlite3.Connection]:
    """The tables, still empty, in a file that is gone afterwards.

    Raises:
        MiniGPT4Error: when the disk is full.
    """
    db = sqlite3.connect(file)
    try:
        # Sorting writes files of its own: beside the output is room, in /tmp perhaps not.
        db.execute("PRAGMA temp_store_directory = '{}'".format(str(file.parent).replace("'", "''")))
        # Nothing in it outlives this process.
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KB}"):
            db.execute(f"PRAGMA {setting}")
        db.executescript(_TABLES)
        yield db
    except sqlite3.Error as error:
        raise MiniGPT4Error(
            f"{file}: cannot be written ({one_line(error)}); free space, or choose another --output"
        ) from error
    finally:
        db.close()
        file.unlink(missing_ok=True)


def open_table(path: Path, columns: Sequence[str]) -> RowFile:
    """A csv that has these columns."""
    if path.suffix.lower() != ".csv":
        raise DataError(f"{path}: must be a .csv")
    table = RowFile(path)
    lacking = [name for name in columns if name not in table.columns]
    if lacking:
        has = ", ".join(table.columns)
        raise DataError(f"{path}:1: has no column {', '.join(lacking)}; it has {shown(has)}")
    return table


def is_missing(text: str) -> bool:
    return text.strip().casefold() in NOTHING


def number_of(text: str) -> float | None:
    """A finite number, with or without commas between thousands; None for anything else."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    try:
        number = float(text.replace(",", ""))
    except ValueError:  # "", "." and "e5"
        return None
    return number if math.isfinite(number) else None


def drawn(*parts: object) -> int:
    """64 bits that depend on these parts alone, the same everywhere and always."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


def read_info(db: sqlite3.Connection, table: RowFile, left_out: BadRows) -> int:
    """Fill ``images``; the number of rows."""
    listed = 0
    for row in table:
        place = f"{table.path}:{row.line}"
        image_id = _image_id(row, place, left_out)
        if image_id is None:
            continue
        url = row.fields["image_url"].strip()
        insert = "INSERT OR IGNORE INTO images (image_id, url) VALUES (?, ?)"
        if db.execute(insert, (image_id, None if is_missing(url) else url)).rowcount:
            listed += 1
        else:
            left_out.add("image_id twice", place, shown(image_id))
    return _rows(table, listed, left_out)


def read_captions(
    db: sqlite3.Connection, table: RowFile, seed: int, left_out: BadRows
) -> tuple[int, dict[str, int]]:
    """Fill ``captions``; the number of rows, and how many of them have which score."""
    scores: Counter[int] = Counter()

    def captions() -> Iterator[tuple[str, int, float, int, str]]:
        for row in table:
            place = f"{table.path}:{row.line}"
            image_id = _image_id(row, place, left_out)
            if image_id is None:
                continue
            caption, told = row.fields["caption"].strip(), row.fields["funny_score"]
            if is_missing(caption):
                left_out.add("no caption", place)
            elif is_missing(told):
                left_out.add("no funny_score", place)
            elif (score := number_of(told)) is None:
                left_out.add("funny_score is no number", place, shown(told))
            else:
                scores[_magnitude(score)] += 1
                yield image_id, row.line, score, drawn(seed, image_id, caption), caption

    db.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", captions())
    names = {-2: "below 0", -1: "0", 0: "above 0, below 1"}
    histogram = {
        names.get(digits, f"{10 ** (digits - 1):,} to below {10**digits:,}"): scores[digits]
        for digits in sorted(scores)
    }
    return _rows(table, scores.total(), left_out), histogram


def _rows(table: RowFile, good: int, left_out: BadRows) -> int:
    rows = good + left_out.counts.total()
    if not rows:
        raise DataError(f"{table.path}:1: no rows follow the line with the columns")
    return rows


def _image_id(row: Row, place: str, left_out: BadRows) -> str | None:
    """The image's id, always a text ("0012" is not 12); None where the row is left out."""
    if row.fault:
        left_out.add("unreadable row", place, row.fault)
        return None
    image_id = str(row.fields["image_id"]).strip()
    if is_missing(image_id):
        left_out.add("no image_id", place)
    elif (
        "/" in image_id
        or "\\" in image_id
        or image_id in (".", "..")
        or not image_id.isprintable()
        or len(image_id.encode()) > _LONGEST_ID
    ):
        left_out.add("image_id is no file name, refused", place, shown(image_id))
    else:
        return image_id
    return None


def _magnitude(score: float) -> int:
    """-2 below 0, -1 for 0, 0 below 1, and from there the digits before the point."""
    if score <= 0:
        return -2 if score else -1
    return len(str(int(score))) if score >= 1 else 0


def find_pictures(db: sqlite3.Connection, folder: Path) -> int:
    """Note the file of every listed image that has one; the number of pictures seen.

    A picture is named by its image's id, or lies in a folder below, beside a json with its ``url``,
    as img2dataset leaves it: that one reads ids of digits as numbers.
    """
    seen, folders = 0, []
    update = (
        "UPDATE images SET preference = ?1, file = ?2 WHERE {} = ?3 AND "
        "(file IS NULL OR (?1, ?2) < (preference, file))"
    )
    for name, is_folder in _entries(folder):
        stem, suffix = os.path.splitext(name)
        if is_folder:
            folders.append(name)
        elif suffix.lower() in SUFFIXES:
            seen += 1
            found = SUFFIXES.index(suffix.lower()), name, stem
            db.execute(update.format("image_id"), found)
    if folders:
        db.execute("CREATE INDEX urls ON images (url)")
    for below in folders:
        for name, _ in _entries(folder / below):
            file = Path(below, name)
            if file.suffix.lower() in SUFFIXES:
                seen += 1
                found_below = len(SUFFIXES), str(file), _url_beside(folder / file)
                db.execute(update.format("url"), found_below)
    return seen


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Names in a folder that an image could have, and whether they are folders."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.isprintable() and (entry.is_file() or entry.is_dir()):
                    yield entry.name, entry.is_dir()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({one_line(error)})") from error


def _url_beside(picture: Path) -> str | None:
    try:
        url = json.loads(picture.with_suffix(".json").read_bytes())["url"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return url.strip() if isinstance(url, str) else None
