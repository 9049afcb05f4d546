"""The converter of stage 1's lists as they grow: rows per second, and the memory it takes.

    python benchmarks/convert_links.py --json output/convert_links.json

Drawn lists of the published form (one json list in one line, a few rows bad) go through
``dataset/convert_links.py`` in processes of their own; sizes in turn, medians. Exit code 1 when a
row of the largest list takes more processor time than one of the smallest, or the list more memory,
by more than the tolerances below; when it takes 500 MB; or when a good row is lost.
"""

import argparse
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minigpt4.errors import ConfigError, MiniGPT4Error, run_guarded  # noqa: E402

SLOWER = 1.3  # processor time of a row, over that in the smallest list; machines are noisy
LARGER = 1.2  # peak memory, over that of the smallest list
MOST = 500  # MB
WORDS = ["a", "the", "dog", "cat", "house", "street", "in front of", "on", "with", "red", "people"]
BAD = ('{"caption": "no url"}', "7", '{"url": "ftp://a/b.jpg", "caption": "x"}')
BAD_SHARE = 0.01
# Its own peak: what a parent tells of a child begins with the parent's memory.
MEASURED = """\
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    status = open("/proc/self/status").read()
    print("peak", status.split("VmHWM:")[1].split()[0])
"""


def write_list(file: Path, rows: int, seed: int) -> int:
    """How many of the rows are good."""
    drawn = random.Random(seed)
    bad = 0
    with open(file, "w", encoding="utf-8") as opened:
        for number in range(rows):
            opened.write(", " if number else "[")
            if number and drawn.random() < BAD_SHARE:
                bad += 1
                opened.write(drawn.choice(BAD))
                continue
            caption = " ".join(drawn.choices(WORDS, k=drawn.randint(6, 14)))
            url = f"https://images{number % 97}.example.com/{number % 13}/{number:09d}.jpg?size=640"
            opened.write(json.dumps({"caption": caption, "url": url}))
        opened.write("]\n")
    return rows - bad


def measure(file: Path) -> dict[str, float]:
    """Seconds, memory and rows of one conversion."""
    with tempfile.TemporaryDirectory(dir=file.parent) as name:
        output, told = Path(name) / "links", Path(name) / "told"
        command = [sys.executable, "-c", MEASURED, str(ROOT / "dataset" / "convert_links.py")]
        command += [str(file), "--output", str(output)]
        since = time.perf_counter()
        with open(told, "wb") as opened:
            child = subprocess.Popen(command, stdout=opened, stderr=opened)
            _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - since
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise MiniGPT4Error(f"exit code {child.returncode}: {told.read_text()}")
        peak = told.read_text().rsplit("peak ", 1)[1]
        return {
            "seconds": seconds,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "megabytes": int(peak) / 1000,
            "links": json.loads((output / "summary.json").read_text())["links"],
        }


def missed(found: dict[int, dict[str, float]]) -> list[str]:
    """Bars that were missed."""
    least, most = min(found), max(found)
    small, large = found[least], found[most]
    lines = [
        f"{rows:,} rows: {point['links']:,.0f} links, {point['good']:,.0f} rows are good"
        for rows, point in found.items()
        if point["links"] != point["good"]
    ]
    slower = large["cpu_seconds"] / small["cpu_seconds"] / (most / least)
    if slower > SLOWER:
        lines.append(f"time grows more than linearly: a row takes {slower:.2f} times as long")
    larger = large["megabytes"] / small["megabytes"]
    if larger > LARGER:
        lines.append(f"memory is not flat: {larger:.2f} times as much")
    if large["megabytes"] > MOST:
        lines.append(f"{large['megabytes']:,.0f} MB are more than {MOST}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(100_000, 1_000_000))
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each size (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the lists (0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args(argv)
    sizes = sorted(set(arguments.rows))
    if len(sizes) < 2 or sizes[0] < 1 or arguments.repeats < 1:
        raise ConfigError("--rows needs two sizes or more, --repeats at least 1")
    runs: dict[int, list[dict[str, float]]] = {rows: [] for rows in sizes}
    with tempfile.TemporaryDirectory() as name:
        files = {rows: Path(name) / f"{rows}.json" for rows in sizes}
        good = {rows: write_list(file, rows, arguments.seed) for rows, file in files.items()}
        megabytes = {rows: file.stat().st_size / 1e6 for rows, file in files.items()}
        for _ in range(arguments.repeats):
            for rows, file in files.items():
                runs[rows].append(measure(file))
    found = {}
    for rows, points in runs.items():
        middle = {key: statistics.median(run[key] for run in points) for key in points[0]}
        found[rows] = middle | {"good": good[rows], "rows_per_second": rows / middle["seconds"]}
        print(
            f"{rows:>12,} rows, {megabytes[rows]:>7,.0f} MB: {middle['seconds']:>7.2f} s "
            f"({middle['cpu_seconds']:.2f} s of a processor), "
            f"{rows / middle['seconds']:,.0f} rows/s, peak {middle['megabytes']:,.1f} MB"
        )
    lines = missed(found)
    print("\n".join(lines) or "linear in time, flat in memory")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"repeats": arguments.repeats, "seed": arguments.seed, "sizes": found}
        arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if lines else 0


if __name__ == "__main__":
    run_guarded(main)
