"""BLIP's lists of links and captions as img2dataset reads them, and LLaVA's 558K pairs as shards.

    python dataset/convert_links.py ccs_synthetic_filtered_large.json --output data/cc_sbu_links

First step of stage 1's data: list → links → img2dataset → shards. Lists are .json, .jsonl, .csv or
.tsv with "url" and "caption", and are never in memory as a whole. OUTPUT gets 00000.jsonl and so on
and summary.json, when all of it is there. Bad rows are counted, told and left out.

With --from llava-pretrain, the list is blip_laion_cc_sbu_558k_meta.json; with --images as well,
blip_laion_cc_sbu_558k.json, whose pictures go into shards that stage 1 reads.

Any Python from 3.10 on will do. Exit code: 0; 2 for a mistake, such as a list that breaks off.
"""

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataset.bad_rows import BadRows, lines_of
from dataset.folders import SUMMARY, kept_folder, new_folder
from dataset.pack_shards import pack_shards, place_of
from minigpt4.errors import DataError, MiniGPT4Error, run_guarded, shown
from minigpt4.files import write_atomically, write_json
from minigpt4.row_files import Row, RowFile

CAPTIONS = {"blip": "caption", "llava-pretrain": "blip_caption"}  # where each --from has them
LONGEST = 100_000  # bytes of a row; img2dataset's reader gives up near a million
_URL = re.compile(r"https?://[^/\s]", re.IGNORECASE)
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Parts:
    """Rows in files of bounded size: img2dataset takes each of its input files into memory."""

    def __init__(self, folder: Path, rows_per_part: int) -> None:
        self.rows: dict[str, int] = {}  # of each part
        self._folder, self._most = folder, rows_per_part
        self._file: BinaryIO | None = None
        self._count = 0

    def write(self, line: bytes) -> None:
        if self._file is None:
            name = f"{len(self.rows):05d}.jsonl"
            self._file = open(self._folder / name, "wb")  # noqa: SIM115 -- several rows long
        self._file.write(line)
        self._count += 1
        if self._count == self._most:
            self.close()

    def close(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = Path(self._file.name).name
        self.rows[name] = self._count
        self._file, self._count = None, 0
        logging.info("%s written, %s rows so far", name, f"{self.total:,}")

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def link_of(row: Row, caption_key: str) -> tuple[bytes, str, str]:
    """A row's line for img2dataset; without one, what is wrong with the row, and how."""
    if row.fault:
        return b"", "unreadable row", row.fault
    url, caption = row.fields.get("url"), row.fields.get(caption_key)
    if not isinstance(url, str) or not url.strip():
        return b"", "no url", shown(url)
    if not _URL.match(url):
        return b"", "url that is not http", shown(url)
    if not isinstance(caption, str) or not caption.strip():
        return b"", "no caption", shown(caption)
    try:
        line = (_encode({"url": url, "caption": caption}) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which json can write and UTF-8 cannot
        return b"", "broken characters", shown(caption)
    if len(line) > LONGEST:
        return b"", "too long", f"{len(line):,} bytes"
    return line, "", ""


def write_links(
    lists: Sequence[RowFile], output: Path, caption_key: str, rows_per_part: int, bad: BadRows
) -> list[str]:
    """What happened, as lines; the folder is there whole or not at all."""
    with new_folder(output) as folder:
        parts = Parts(folder, rows_per_part)
        for rows in lists:
            for number, row in enumerate(rows, start=1):
                line, kind, detail = link_of(row, caption_key)
                if line:
                    parts.write(line)
                else:
                    bad.add(kind, place_of(rows, row, number), detail)
        parts.close()
        refuse_nothing(lists, parts.total, bad)
        summary = {
            "lists": facts_of(lists),
            "rows": parts.total + bad.counts.total(),
            "links": parts.total,
            "bad": bad.as_json(),
            "parts": parts.rows,
        }
        write_json(folder / SUMMARY, summary)
    return [
        f"{summary['rows']:,} rows, {parts.total:,} of them written to {output} "
        f"in {len(parts.rows):,} part(s); {bad.counts.total():,} bad"
    ]


def write_shards(
    lists: Sequence[RowFile], images: Path, output: Path, shard_size: int, bad: BadRows
) -> list[str]:
    """What happened, as lines; each shard is there whole or not at all."""
    if not images.is_dir():
        raise DataError(f"{images}: no such folder; --images is where images.zip was unpacked")
    settings = {"lists": facts_of(lists), "shard_size": shard_size}
    with kept_folder(output, settings):
        shards, pairs = 0, 0
        for packed in pack_shards(lists, images, output, shard_size):
            shards += bool(packed["successes"])
            pairs += packed["successes"]
            for told in packed["bad"]:
                bad.add(told["kind"], told["place"], told["detail"])
        refuse_nothing(lists, pairs, bad)
        summary = {"pairs": pairs, "shards": shards, "bad": bad.as_json()}
        write_json(output / SUMMARY, summary)
    rows = pairs + bad.counts.total()
    return [
        f"{rows:,} rows, {pairs:,} of them in {shards:,} shard(s) in {output}; "
        f"{bad.counts.total():,} bad"
    ]


def facts_of(lists: Sequence[RowFile]) -> list[dict[str, Any]]:
    """By what lists are known again."""
    return [{"name": rows.path.name, "bytes": rows.path.stat().st_size} for rows in lists]


def refuse_nothing(lists: Sequence[RowFile], good: int, bad: BadRows) -> None:
    """Raise where no row is of use.

    Raises:
        DataError: with what is wrong with the most of them.
    """
    if good:
        return
    names = ", ".join(str(rows.path) for rows in lists)
    if not bad.counts:
        raise DataError(f"{names}: 0 rows")
    kind, count = bad.counts.most_common(1)[0]
    told = bad.first[kind][0]
    raise DataError(f"{names}: no row is of use; {count:,} times {kind}, first {told}")


def open_lists(files: Sequence[Path], wanted: Sequence[str]) -> Iterator[RowFile]:
    """The lists; those with a header have the columns.

    Raises:
        DataError: for a file of another form.
    """
    for file in files:
        rows = RowFile(file)
        for column in wanted if rows.columns else ():
            if column not in rows.columns:
                raise DataError(
                    f"{file}:1: no column {column!r}; its columns are {', '.join(rows.columns)}"
                )
        yield rows


def convert(arguments: argparse.Namespace, listing: BinaryIO | None) -> None:
    """Convert and print."""
    bad = BadRows(listing)
    caption_key = CAPTIONS[arguments.source]
    if arguments.images:
        lists = list(open_lists(arguments.files, ["image"]))
        lines = write_shards(lists, arguments.images, arguments.output, arguments.shard_size, bad)
    else:
        lists = list(open_lists(arguments.files, ["url", caption_key]))
        lines = write_links(lists, arguments.output, caption_key, arguments.rows_per_part, bad)
    print("\n".join([*lines, *lines_of(bad.as_json())]))


def main(argv: Sequence[str] | None = None) -> None:
    description = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=description[0],
        epilog=description[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--from", choices=CAPTIONS, default="blip", dest="source")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where images.zip is unpacked")
    parser.add_argument("--bad", type=Path, metavar="FILE", help="list bad rows there, as jsonl")
    parser.add_argument("--rows-per-part", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows, with --images")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.images and arguments.source != "llava-pretrain":
        raise MiniGPT4Error("--images goes with --from llava-pretrain; lists of links have none")
    for name in ("rows_per_part", "shard_size"):
        if getattr(arguments, name) < 1:
            raise MiniGPT4Error(f"--{name.replace('_', '-')}: must be at least 1")
    if not arguments.bad:
        return convert(arguments, None)
    if arguments.bad.exists():
        raise MiniGPT4Error(f"{arguments.bad}: exists already; choose another file for --bad")
    return write_atomically(arguments.bad, lambda file: convert(arguments, file))


if __name__ == "__main__":
    run_guarded(main)
