r"""Oxford-HIC's two csv files and its pictures → the folders that the humour model learns from.

    python dataset/prepare_oxford_hic.py --info oxford_hic_image_info.csv \
        --data oxford_hic_data.csv --images images --output oxford_hic --min-score 1

Comes before ``train.py`` (dataset/README_OXFORD_HIC.md). Writes ``train/``, ``val/`` and ``test/``
in the form of ``cc_sbu_align``, or as shards, and ``summary.json``; all of it or nothing.
"""

import argparse
import itertools
import json
import logging
import math
import os
import shutil
import sqlite3
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from dataset.bad_rows import BadRows, lines_of
from dataset.folders import SUMMARY, new_folder
from dataset.oxford_hic_tables import (
    drawn,
    find_pictures,
    open_table,
    read_captions,
    read_info,
    temporary_database,
)
from dataset.pack_shards import write_shard
from minigpt4.errors import ConfigError, DataError, one_line, run_guarded
from minigpt4.files import write_atomically, write_json
from minigpt4.row_files import RowFile

SPLITS = ("train", "val", "test")
# What minigpt4.datasets.images opens; its import would bring torch.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF", "ICO")

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the program."""
    for name, told in (
        ("--info", "oxford_hic_image_info.csv: image_id, image_url"),
        ("--data", "oxford_hic_data.csv: image_id, caption, funny_score"),
        ("--images", "folder of {image_id}.jpg (.jpeg, .png, .webp), or as img2dataset fills it"),
        ("--output", "folder to make; it must not be there yet"),
    ):
        parser.add_argument(name, type=Path, required=True, help=told)
    parser.add_argument("--min-score", type=float, help="leave out captions that are less funny")
    most = "keep the N funniest of each image"
    parser.add_argument("--max-captions-per-image", type=int, metavar="N", help=most)
    parser.add_argument("--val-fraction", type=float, default=0.05, help="of the images (0.05)")
    parser.add_argument("--test-fraction", type=float, default=0.05, help="of the images (0.05)")
    shards = "write webdataset shards of N pairs, not folders"
    parser.add_argument("--samples-per-shard", type=int, metavar="N", help=shards)
    decode = "read every picture whole, not its header alone"
    parser.add_argument("--decode", action="store_true", help=decode)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of ties (0)")


def check_arguments(arguments: argparse.Namespace) -> None:
    for name in ("max_captions_per_image", "samples_per_shard"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} must be at least 1")
    val, test = arguments.val_fraction, arguments.test_fraction
    if not (val >= 0 and test >= 0 and val + test < 1):  # so NaN is refused, too
        raise ConfigError("--val-fraction and --test-fraction must not be negative or reach 1")
    if arguments.min_score is not None and math.isnan(arguments.min_score):
        raise ConfigError("--min-score: nan is no score")
    if not arguments.images.is_dir():
        raise DataError(f"--images {arguments.images}: no such folder")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    check_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    info = open_table(arguments.info, ("image_id", "image_url"))
    data = open_table(arguments.data, ("image_id", "caption", "funny_score"))
    with new_folder(arguments.output) as work:
        summary = prepare(arguments, info, data, work)
        write_json(work / SUMMARY, summary)
    print("\n".join(summary_lines(summary)), arguments.output, sep="\n")
    return 0


def prepare(
    arguments: argparse.Namespace, info: RowFile, data: RowFile, work: Path
) -> dict[str, Any]:
    """Write every split into the work folder; the summary."""
    not_listed, left_out = BadRows(), BadRows()
    with temporary_database(work / "rows.sqlite") as db:
        listed = read_info(db, info, not_listed)
        logger.info("%s: %d rows", info.path, listed)
        rows, scores = read_captions(db, data, arguments.seed, left_out)
        logger.info("%s: %d rows", data.path, rows)
        pictures = find_pictures(db, arguments.images)
        logger.info("%s: %d pictures", arguments.images, pictures)
        chosen = Chosen(arguments, left_out)
        chosen.fill(db)
        check_enough(chosen, pictures)
        for split in filter(chosen.images.get, SPLITS):
            if arguments.samples_per_shard is None:
                write_folder(db, arguments.images, work / split, split)
            else:
                size = arguments.samples_per_shard
                write_shards(db, arguments.images, work / split, split, size)
            logger.info("%s is written", split)
    options = ("min_score", "max_captions_per_image", "val_fraction", "test_fraction", "seed")
    return {
        "options": {name: getattr(arguments, name) for name in options},
        "info": {"file": str(info.path), "rows": listed, "left_out": not_listed.as_json()},
        "data": {"file": str(data.path), "rows": rows, "left_out": left_out.as_json()},
        "rows_by_score": scores,
        "images_of_score_0_throughout": chosen.worthless_images,
        "pictures": pictures,
        "splits": {
            split: {"images": chosen.images[split], "captions": chosen.captions[split]}
            for split in SPLITS
        },
    }


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    for part in ("info", "data"):
        yield f"{summary[part]['file']}: {summary[part]['rows']:,} rows, left out of them:"
        yield from lines_of(summary[part]["left_out"])
    yield "rows by funny_score:"
    for name, count in summary["rows_by_score"].items():
        yield f"  {name:<36}{count:>11,}"
    yield f"  images that score 0 throughout{summary['images_of_score_0_throughout']:>17,}"
    for split, found in summary["splits"].items():
        yield f"{split:<6}{found['images']:>11,} images{found['captions']:>12,} captions"


class Chosen:
    """What is kept of the captions, image by image, and how much that is in each split."""

    def __init__(self, arguments: argparse.Namespace, left_out: BadRows) -> None:
        self.arguments, self.left_out = arguments, left_out
        self.images: Counter[str] = Counter()
        self.captions: Counter[str] = Counter()
        self.worthless_images = 0  # score 0 throughout

    def fill(self, db: sqlite3.Connection) -> None:
        """Fill ``kept``."""
        rows = db.execute(
            "SELECT image_id, images.image_id IS NOT NULL, file, line, score, draw, caption "
            "FROM captions LEFT JOIN images USING (image_id) "
            # Equal scores by lot: the first letters would put all quotes at the top.
            "ORDER BY image_id, score DESC, draw, line"
        )
        groups = itertools.groupby(rows, key=itemgetter(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # More pixels than a training takes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            kept = (row for image_id, group in groups for row in self._of_image(image_id, group))
            db.executemany("INSERT INTO kept VALUES (?, ?, ?, ?, ?)", kept)

    def _of_image(
        self, image_id: str, rows: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[str, str, str, int, str]]:
        split, most = self._split(image_id), self.arguments.max_captions_per_image
        before: set[int] = set()
        worthless = True
        fault: tuple[str, str] | None = None  # not looked at yet
        for _, listed, file, line, score, draw, caption in rows:
            place = f"{self.arguments.data}:{line}"
            worthless &= score == 0
            if self.arguments.min_score is not None and score < self.arguments.min_score:
                self.left_out.add("funny_score below --min-score", place)
                continue
            if fault is None:
                fault = self._fault(listed, file)
            reason, detail = fault
            if reason:
                self.left_out.add(reason, place, detail)
            elif draw in before:
                self.left_out.add("same caption of the same image", place)
            elif len(before) == most:
                self.left_out.add("over --max-captions-per-image", place)
            else:
                before.add(draw)
                yield split, image_id, file, draw, caption
        self.images[split] += bool(before)
        self.captions[split] += len(before)
        self.worthless_images += worthless

    def _split(self, image_id: str) -> str:
        """Where an image goes, whatever other images there are."""
        val, test = self.arguments.val_fraction, self.arguments.test_fraction
        place = drawn(self.arguments.seed, image_id) / 2**64 + 0.5
        return "test" if place < test else "val" if place < test + val else "train"

    def _fault(self, listed: bool, file: str | None) -> tuple[str, str]:
        """Why an image cannot be used: a reason and a detail; both empty where it can."""
        if not listed:
            return "image not in --info", ""
        if file is None:
            return "no picture in --images", ""
        detail = picture_fault(self.arguments.images / file, self.arguments.decode)
        return ("unreadable picture", f"{file}: {detail}") if detail else ("", "")


def picture_fault(file: Path, decode: bool) -> str:
    """Why a picture cannot be used, by its header or its pixels; empty where it can."""
    Image.init()  # PIL knows a format only once its reader is imported
    try:
        with Image.open(file, formats=[form for form in FORMATS if form in Image.OPEN]) as picture:
            if not picture.width * picture.height:
                return "no pixels"
            if decode:
                picture.load()
    except Exception as error:  # on broken bytes PIL's readers raise nearly every kind there is
        return one_line(error)
    return ""


def check_enough(chosen: Chosen, pictures: int) -> None:
    """Refuse to write nothing, or nothing to train on; a small split that is empty is told."""
    arguments, data = chosen.arguments, chosen.arguments.data
    if not chosen.captions.total():
        reasons = chosen.left_out.counts.most_common(3)
        worst = ", ".join(f"{reason}: {count:,}" for reason, count in reasons)
        where = f"{arguments.images} holds {pictures:,} pictures"
        raise DataError(f"{data}: no row is left ({worst}; {where}); nothing is written")
    if not chosen.captions["train"]:
        what = "every image that is left falls to --val-fraction or --test-fraction"
        raise DataError(f"{data}: {what}; make them smaller. Nothing is written")
    for split in SPLITS:
        if not chosen.captions[split] and getattr(arguments, f"{split}_fraction"):
            logger.warning("%s: no image falls to it, it is not written", split)


def write_folder(db: sqlite3.Connection, images: Path, folder: Path, split: str) -> None:
    """A split in the form of ``cc_sbu_align``; an image's captions stand one after the other."""
    (folder / "image").mkdir(parents=True)
    encode = json.JSONEncoder(ensure_ascii=False).encode

    def write(file: BinaryIO) -> None:
        select = "SELECT image_id, file, caption FROM kept WHERE split = ? ORDER BY rowid"
        before, begin = None, '{"annotations": ['
        for image_id, picture, caption in db.execute(select, (split,)):
            if image_id != before:
                name = image_id + Path(picture).suffix.lower()
                _place(images / picture, folder / "image" / name)
            before = image_id
            pair = encode({"image_id": image_id, "caption": caption})
            file.write(f"{begin}\n{pair}".encode())
            begin = ","
        file.write(b"\n]}\n")

    write_atomically(folder / "filter_cap.json", write)


def _place(picture: Path, target: Path) -> None:
    """The same file under a second name where that can be, else a copy."""
    try:
        os.link(os.path.realpath(picture), target)
    except OSError:
        shutil.copyfile(picture, target)


def write_shards(
    db: sqlite3.Connection, images: Path, folder: Path, split: str, samples_per_shard: int
) -> None:
    """A split as webdataset shards; an image's captions lie far apart, each with the picture."""
    folder.mkdir(parents=True)
    select = "SELECT image_id, file, caption FROM kept WHERE split = ? ORDER BY draw, image_id"
    rows = db.execute(select, (split,))
    for shard in itertools.count():
        pairs = list(itertools.islice(rows, samples_per_shard))
        if not pairs:
            return
        samples = (
            (
                f"{shard:05d}{number:04d}",
                Path(picture).suffix.lower(),
                (images / picture).read_bytes(),
                {"caption": caption, "image_id": image_id},
            )
            for number, (image_id, picture, caption) in enumerate(pairs)
        )
        write_shard(folder / f"{shard:05d}.tar", samples)


if __name__ == "__main__":
    run_guarded(main)
