"""The programs that read a user's files as these grow: rows per second, and the memory they take.

    python benchmarks/data_growth.py --json output/data_growth.json

Drawn files, one row in fifty bad in some way, go through ``dataset/convert_links.py``,
``dataset/prepare_oxford_hic.py`` and ``check-data``, each in a process of its own; sizes in turn,
medians. Exit code 1 when a row of the largest files takes more processor time than one of the
smallest (beyond what a hundred rows take: that is the start), or they need more memory, by more
than the tolerances below; or when a good row is lost or a bad one kept.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minigpt4.errors import ConfigError, MiniGPT4Error, run_guarded  # noqa: E402

START = 100  # rows; what these take is the start of the program
BAD_SHARE = 0.02
SLOWER = 1.4  # processor time of a row, over that in the smallest files; machines are noisy
# MB beyond the smallest files' peak, in which imports are. A program may note a number for each row
# (8 MB of a million), sort them, and fill the cache of a database; names alone would be 90 MB.
LARGER = 25
CAPTIONS_PER_IMAGE = 20
NAMES_OF_A_FILE = 1000  # file systems allow some ten thousand
WORDS = ["a", "the", "dog", "cat", "house", "street", "in front of", "on", "with", "red", "people"]
SCORES = ["0", "1", "7", "42", "314", "1,234", "12,345"]
BAD_LINKS = ['{"caption": "no url"}', "7", '{"url": "ftp://a/b.jpg", "caption": "x"}']
BAD_JOKES = [
    ("", "a caption", "3"),
    ("../escape", "a caption", "3"),
    ("not-listed", "a caption", "3"),
    ("{}", "NaN", "3"),
    ("{}", "a caption", "many"),
]
BAD_PAIRS = [
    "no json",
    '{"image": "00.png"}',
    '{"image": "gone.png", "caption": "x"}',
    '{"image": "../00.png", "caption": "x"}',
    '{"image": "00.png", "conversations": [{"from": "nobody", "value": "x"}]}',
    '{"id": "row 0", "image": "00.png", "caption": "the id of the first row"}',
]
# Its own peak: what a parent tells of a child begins with the parent's memory.
MEASURED = """\
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@dataclass(frozen=True)
class Program:
    """What is measured.

    Attributes:
        write: Files of so many rows in a folder, from a seed; how many rows are good.
        command: Module and arguments, from these files to an output.
        good: How many rows are good, by that output.
    """

    write: Callable[[Path, int, random.Random], int]
    command: Callable[[Path, Path], list[str]]
    good: Callable[[Path], int]


def sentence(drawn: random.Random) -> str:
    return " ".join(drawn.choices(WORDS, k=drawn.randint(4, 14)))


def picture(file: Path, number: int) -> Path:
    Image.new("RGB", (32, 32), (number % 256, 99, 9)).save(file)
    return file


def write_links(folder: Path, rows: int, drawn: random.Random) -> int:
    """A json list in one line, as the published ones are."""
    bad = 0
    with open(folder / "list.json", "w", encoding="utf-8") as opened:
        for number in range(rows):
            opened.write(", " if number else "[")
            if number and drawn.random() < BAD_SHARE:
                bad += 1
                opened.write(drawn.choice(BAD_LINKS))
                continue
            url = f"https://images{number % 97}.example.com/{number % 13}/{number:09d}.jpg?size=640"
            opened.write(json.dumps({"caption": sentence(drawn), "url": url}))
        opened.write("]\n")
    return rows - bad


def convert_links(files: Path, output: Path) -> list[str]:
    return ["dataset.convert_links", str(files / "list.json"), f"--output={output}"]


def links_in(output: Path) -> int:
    return int(json.loads((output / "summary.json").read_bytes())["links"])


def write_jokes(folder: Path, rows: int, drawn: random.Random) -> int:
    """Two csv files and pictures; no two captions are equal."""
    ids = [f"{number:08d}" for number in range(max(1, rows // CAPTIONS_PER_IMAGE))]
    (folder / "images").mkdir()
    first = folder
    for number, image_id in enumerate(ids):
        file = folder / "images" / f"{image_id}.jpg"
        if number % NAMES_OF_A_FILE:
            os.link(first, file)
        else:
            first = picture(file, number)
    with open(folder / "info.csv", "w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["image_id", "image_url"])
        table.writerows([image_id, f"http://127.0.0.1/{image_id}.jpg"] for image_id in ids)
    bad = 0
    with open(folder / "data.csv", "w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["image_id", "caption", "funny_score"])
        for number in range(rows):
            image_id = drawn.choice(ids)
            if number and drawn.random() < BAD_SHARE:
                bad += 1
                table.writerow(text.format(image_id) for text in drawn.choice(BAD_JOKES))
                continue
            table.writerow([image_id, f'{sentence(drawn)}, "{number}"', drawn.choice(SCORES)])
    return rows - bad


def prepare_jokes(files: Path, output: Path) -> list[str]:
    named = {"info": "info.csv", "data": "data.csv", "images": "images"}
    given = [f"--{option}={files / name}" for option, name in named.items()]
    return ["dataset.prepare_oxford_hic", *given, f"--output={output}"]


def jokes_in(output: Path) -> int:
    splits = json.loads((output / "summary.json").read_bytes())["splits"]
    return sum(split["captions"] for split in splits.values())


def write_pairs(folder: Path, rows: int, drawn: random.Random) -> int:
    """Captions, instructions and conversations on sixteen pictures, with ids."""
    names = [picture(folder / f"{number:02d}.png", number).name for number in range(16)]
    bad = 0
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as opened:
        for number in range(rows):
            if number and drawn.random() < BAD_SHARE:
                bad += 1
                opened.write(drawn.choice(BAD_PAIRS) + "\n")
                continue
            row: dict[str, Any] = {"id": f"row {number}", "image": drawn.choice(names)}
            said = [sentence(drawn) for _ in range(4)]
            if number % 3 == 0:
                row["caption"] = said[0]
            elif number % 3 == 1:
                row |= {"instruction": said[0], "answer": said[1]}
            else:
                turns = zip(["human", "gpt"] * 2, said, strict=True)
                row["conversations"] = [{"from": who, "value": words} for who, words in turns]
            opened.write(json.dumps(row) + "\n")
    return rows - bad


def check_pairs(files: Path, output: Path) -> list[str]:
    given = ["--images=exist", f"--image-root={files}", "--max-bad=100%", f"--json={output}"]
    return ["minigpt4", "check-data", str(files / "rows.jsonl"), *given]


def pairs_in(output: Path) -> int:
    (found,) = json.loads(output.read_bytes())
    return int(found["rows"] - sum(found["bad"].values()))


PROGRAMS = {
    "convert_links": Program(write_links, convert_links, links_in),
    "prepare_oxford_hic": Program(write_jokes, prepare_jokes, jokes_in),
    "check-data": Program(write_pairs, check_pairs, pairs_in),
}


def measure(program: Program, files: Path) -> dict[str, float]:
    """Seconds, memory and good rows of one run."""
    with tempfile.TemporaryDirectory(dir=files) as name:
        output, told = Path(name) / "output", Path(name) / "told"
        command = [sys.executable, "-c", MEASURED, *program.command(files, output)]
        since = time.perf_counter()
        with open(told, "wb") as opened:
            child = subprocess.Popen(command, stdout=opened, stderr=opened, cwd=ROOT)
            _, status, used = os.wait4(child.pid, 0)  # of this child alone
        seconds = time.perf_counter() - since
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise MiniGPT4Error(f"exit code {child.returncode}: {told.read_text()}")
        return {
            "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "megabytes": int(told.read_text().rsplit("peak ", 1)[1]) * 1024 / 1e6,
            "good": program.good(output),
        }


def grow(program: Program, sizes: Sequence[int], repeats: int, seed: int) -> dict[int, Any]:
    """What is found for each size."""
    runs: dict[int, list[dict[str, float]]] = {rows: [] for rows in (START, *sizes)}
    good = {}
    with tempfile.TemporaryDirectory() as name:
        for rows in runs:
            (Path(name) / str(rows)).mkdir()
            good[rows] = program.write(Path(name) / str(rows), rows, random.Random(seed))
        for _ in range(repeats):
            for rows, points in runs.items():
                points.append(measure(program, Path(name) / str(rows)))
    middle = {
        rows: {key: statistics.median(run[key] for run in points) for key in points[0]}
        for rows, points in runs.items()
    }
    start = middle[START]["cpu_seconds"]
    return {
        rows: middle[rows]
        | {
            "really_good": good[rows],
            "rows_per_second": rows / middle[rows]["seconds"],
            "cpu_seconds_of_a_row": (middle[rows]["cpu_seconds"] - start) / (rows - START),
            "runs": runs[rows],
        }
        for rows in sizes
    }


def missed(found: dict[int, Any]) -> list[str]:
    """Bars that were missed."""
    small, large = found[min(found)], found[max(found)]
    lines = [
        f"{rows:,} rows: {point['good']:,.0f} are good to it, {point['really_good']:,} are"
        for rows, point in found.items()
        if point["good"] != point["really_good"]
    ]
    before, after = (point["cpu_seconds_of_a_row"] for point in (small, large))
    if after > SLOWER * before:
        told = f"a row takes {after * 1e6:.1f} µs, not {before * 1e6:.1f}"
        lines.append(f"time grows more than linearly: {told}")
    larger = large["megabytes"] - small["megabytes"]
    if larger > LARGER:
        lines.append(f"memory is not flat: {larger:,.0f} MB more")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument("--rows", type=int, nargs="+", default=(100_000, 1_000_000))
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each size (3)")
    parser.add_argument("--seed", type=int, default=0, help="of the files (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    sizes = sorted(set(arguments.rows))
    if len(sizes) < 2 or sizes[0] <= START or arguments.repeats < 1:
        raise ConfigError(f"--rows needs two sizes or more, above {START}; --repeats at least 1")
    figures, lines = {}, []
    for name in arguments.programs:
        found = grow(PROGRAMS[name], sizes, arguments.repeats, arguments.seed)
        for rows, point in found.items():
            print(
                f"{name:<20}{rows:>10,} rows{point['seconds']:>8.2f} s"
                f"{point['rows_per_second']:>9,.0f} rows/s"
                f"{point['cpu_seconds_of_a_row'] * 1e6:>8.1f} µs of a processor a row"
                f"{point['megabytes']:>8,.1f} MB",
                flush=True,
            )
        figures[name] = found
        lines += [f"{name}: {line}" for line in missed(found)]
    print("\n".join(lines) or "linear in time, flat in memory")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"repeats": arguments.repeats, "seed": arguments.seed, "programs": figures}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
