"""The preparation of Oxford-HIC as its files grow: rows per second, and the memory it takes.

    python benchmarks/prepare_oxford_hic.py --json output/prepare_oxford_hic.json

Drawn csv files with faults of every kind, twenty captions to a picture, go through
``dataset/prepare_oxford_hic.py`` in processes of their own; sizes in turn, medians. Exit code 1
when a row of the largest files takes longer than one of the smallest, or they need more memory, by
more than the tolerances below; or when an answer is wrong.
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minigpt4.errors import ConfigError, MiniGPT4Error, run_guarded  # noqa: E402

CAPTIONS_PER_IMAGE = 20
SLOWER = (
    1.5  # time of a row: sorting takes a little more than in proportion, and machines are noisy
)
LARGER = 1.25  # peak memory, over that of the smallest files
_NAMES_OF_A_FILE = 1000  # file systems allow some ten thousand
_WORDS = (
    "when",
    "you",
    "realise",
    "that",
    "it",
    "is",
    "Monday",
    "and",
    "nobody",
    "told",
    "the",
    "cat",
)
_SCORES = ("0", "1", "7", "42", "314", "1,234", "12,345")
_FAULTS = (
    ("", "a caption", "3"),
    ("nan", "a caption", "3"),
    ("../escape", "a caption", "3"),
    ("not-listed", "a caption", "3"),
    ("{}", "NaN", "3"),
    ("{}", "a caption", "nan"),
    ("{}", "a caption", "many"),
)


def write_files(folder: Path, rows: int, seed: int) -> int:
    """Two csv files and pictures; the number of rows without a fault. No two captions are equal."""
    drawn = random.Random(seed)
    ids = [f"{number:08d}" for number in range(max(1, rows // CAPTIONS_PER_IMAGE))]
    (folder / "images").mkdir(parents=True)
    first = folder
    for number, image_id in enumerate(ids):
        file = folder / "images" / f"{image_id}.jpg"
        if number % _NAMES_OF_A_FILE:
            os.link(first, file)
        else:
            first = file
            Image.new("RGB", (32, 32), (number % 256, 99, 9)).save(file)
    with open(folder / "info.csv", "w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["image_id", "image_url"])
        table.writerows([image_id, f"http://127.0.0.1/{image_id}.jpg"] for image_id in ids)
    good = 0
    with open(folder / "data.csv", "w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["image_id", "caption", "funny_score"])
        for number in range(rows):
            image_id = drawn.choice(ids)
            if drawn.random() < 0.02:
                table.writerow(text.format(image_id) for text in drawn.choice(_FAULTS))
                continue
            good += 1
            words = " ".join(drawn.choices(_WORDS, k=drawn.randint(3, 20)))
            table.writerow([image_id, f'{words}, "{number}"', drawn.choice(_SCORES)])
    return good


def measure(folder: Path, samples_per_shard: int | None) -> dict[str, Any]:
    """Seconds and peak memory of one preparation, and the captions it kept."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name) / "out"
        files = {"info": "info.csv", "data": "data.csv", "images": "images"}
        command = [
            sys.executable,
            str(ROOT / "dataset/prepare_oxford_hic.py"),
            f"--output={output}",
        ]
        command += [f"--{option}={folder / file}" for option, file in files.items()]
        if samples_per_shard:
            command += [f"--samples-per-shard={samples_per_shard}"]
        errors = Path(name) / "stderr"
        since = time.perf_counter()
        with open(errors, "wb") as stderr:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
            _, status, used = os.wait4(child.pid, 0)  # of this child alone
        seconds = time.perf_counter() - since
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise MiniGPT4Error(f"exit code {child.returncode}: {errors.read_text()}")
        splits = json.loads((output / "summary.json").read_text())["splits"].values()
        return {
            "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "megabytes": used.ru_maxrss / 1024,
            "captions": sum(split["captions"] for split in splits),
        }


def missed(found: dict[int, dict[str, Any]]) -> list[str]:
    """Bars that were missed."""
    small, large = found[min(found)], found[max(found)]
    lines = [
        f"{rows:,} rows: {point['captions']:,} captions kept, {point['good']:,} had no fault"
        for rows, point in found.items()
        if point["captions"] != point["good"]
    ]
    slower = large["cpu_seconds"] / small["cpu_seconds"] / (max(found) / min(found))
    if slower > SLOWER:
        lines.append(f"time grows more than linearly: a row takes {slower:.2f} times as long")
    larger = large["megabytes"] / small["megabytes"]
    if larger > LARGER:
        lines.append(f"memory is not flat: {larger:.2f} times as much")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(100_000, 1_000_000))
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each size (3)")
    parser.add_argument("--samples-per-shard", type=int, metavar="N", help="shards, not folders")
    parser.add_argument("--seed", type=int, default=0, help="of the files (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    sizes = sorted(set(arguments.rows))
    if len(sizes) < 2 or sizes[0] < 1 or arguments.repeats < 1:
        raise ConfigError("--rows needs two sizes or more, --repeats at least 1")
    runs: dict[int, list[dict[str, Any]]] = {rows: [] for rows in sizes}
    with tempfile.TemporaryDirectory() as name:
        good = {rows: write_files(Path(name) / str(rows), rows, arguments.seed) for rows in sizes}
        for _ in range(arguments.repeats):
            for rows in sizes:
                runs[rows].append(measure(Path(name) / str(rows), arguments.samples_per_shard))
    found = {}
    for rows, points in runs.items():
        middle = {key: statistics.median(run[key] for run in points) for key in points[0]}
        found[rows] = middle | {
            "rows_per_second": rows / middle["seconds"],
            "good": good[rows],
            "runs": points,
        }
        print(
            f"{rows:>10,} rows{middle['seconds']:>8.1f} s ({middle['cpu_seconds']:.1f} s on a CPU)"
            f"{rows / middle['seconds']:>10,.0f} rows/s"
            f"{middle['megabytes']:>8,.0f} MB"
        )
    lines = missed(found)
    print("\n".join(lines) or "held")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"seed": arguments.seed, **found}, indent=2) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
