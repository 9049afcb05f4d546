"""Links of convert_links.py → webdataset shards, by img2dataset; may be killed and started again.

    bash dataset/download_laion.sh --input data/laion_links --output data/laion

Second step of stage 1's data. img2dataset writes a shard under its last name while it downloads.
So it works in a hidden folder, from which whole shards move to OUTPUT: a training never sees half
a shard. The same command, started again, goes on. OUTPUT gets summary.json when all of it is there.

Options that are not listed here go to img2dataset, e.g. --timeout 20 or --encode_quality 90.
Exit code: 0 when every shard is there; 2 when some are not, or for a mistake.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))

from dataset.folders import SUMMARY, kept_folder, read_json
from minigpt4.errors import MiniGPT4Error, run_guarded
from minigpt4.files import write_json

# Its own default, "border", fills a picture up to a square with white, and a model would learn the
# white. "keep_ratio" makes the shorter side image_size, and neither adds nor cuts: the processor
# then squeezes all of it to a square, as it does with every picture in a chat.
PICTURES = ["--image_size=224", "--resize_mode=keep_ratio", "--resize_only_if_bigger=True"]
FORMATS = ["--input_format=jsonl", "--url_col=url", "--caption_col=caption"]
FORMATS += ["--output_format=webdataset", "--incremental_mode=incremental"]
# What has a name of ours, or must be as it is.
OURS = {word.split("=")[0] for word in FORMATS} | {
    *("--url_list", "--output_folder", "--number_sample_per_shard"),
    *("--processes_count", "--thread_count"),
}
IMG2DATASET = Path(sys.executable).with_name("img2dataset")  # in the same environment
ATTEMPT = ".attempt-"
MOVE_EVERY = 20.0  # seconds
SHOWN = 8  # reasons for which links gave no picture
_SUFFIXES = (".jpg", ".png", ".webp")  # what img2dataset writes


def download(arguments: argparse.Namespace, extra: Sequence[str], parts: dict[str, int]) -> None:
    """Fill the output folder with the shards of all parts, and print what became of the links.

    Raises:
        MiniGPT4Error: when not every shard is there at the end.
    """
    output: Path = arguments.output
    settings = {"links": parts, "shard_size": arguments.shard_size}
    shards = sum(math.ceil(rows / arguments.shard_size) for rows in parts.values())
    with kept_folder(output, settings) as lock:
        for left in output.glob(f"{ATTEMPT}*"):
            move_whole_shards(left, output)
            shutil.rmtree(left, ignore_errors=True)
        code = 0
        if len(done_in(output)) < shards:
            code = attempt(arguments, extra, lock)
        lacking = shards - len(done_in(output))
        if lacking:
            why = (
                "were not written whole (its reasons stand above), or none of their links answered"
            )
            raise MiniGPT4Error(
                f"{output}: {lacking:,} of {shards:,} shards are not there; "
                f"img2dataset ended with exit code {code}, and they {why}; "
                "the same command tries again"
            )
        summarize(output)


def attempt(arguments: argparse.Namespace, extra: Sequence[str], lock: int) -> int:
    """img2dataset's exit code, after it has downloaded what is lacking."""
    # A new folder each time: processes of a killed attempt may still be writing into theirs.
    folder = Path(tempfile.mkdtemp(prefix=ATTEMPT, dir=arguments.output))
    for stats in done_in(arguments.output):
        (folder / stats.name).touch()  # by these names it knows what is done
    command = [str(IMG2DATASET), *FORMATS, *PICTURES]
    command += [f"--url_list={arguments.input}", f"--output_folder={folder}"]
    command += [f"--number_sample_per_shard={arguments.shard_size}"]
    command += [f"--processes_count={arguments.processes}", f"--thread_count={arguments.threads}"]
    process = subprocess.Popen(
        [*command, *extra],  # of the same option twice, it takes the last
        env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},  # it would ask the network
        pass_fds=[lock],  # as long as it lives, nobody else begins
        start_new_session=True,  # its processes end together
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(MOVE_EVERY)
            move_whole_shards(folder, arguments.output)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is not whole is of no use
        process.wait()
        move_whole_shards(folder, arguments.output)
        shutil.rmtree(folder, ignore_errors=True)
    return process.returncode


def done_in(folder: Path) -> list[Path]:
    """The files that say that a shard is there."""
    return sorted(folder.glob("[0-9]*_stats.json"))


def move_whole_shards(work: Path, output: Path) -> None:
    """Move the shards that are whole to where a training looks."""
    for stats in done_in(work):
        number = stats.name.split("_")[0]
        if (output / stats.name).exists():
            continue
        try:
            told = json.loads(stats.read_bytes())
        except (OSError, ValueError):
            continue  # not written to its end, yet or for ever
        tar = work / f"{number}.tar"
        if not tar.exists():
            tar = output / tar.name  # a kill came between the moves
        # Without a picture the network was away, as a rule. Left behind, it is tried again.
        if not told["successes"] or not is_whole(tar, told["successes"]):
            continue
        with open(tar, "rb") as file:
            os.fsync(file.fileno())
        os.replace(tar, output / tar.name)
        with contextlib.suppress(FileNotFoundError):
            os.replace(work / f"{number}.parquet", output / f"{number}.parquet")
        # Last: from now on it is done. img2dataset reads its own, which stays.
        write_json(output / stats.name, told)


def is_whole(tar: Path, pictures: int) -> bool:
    """Whether a shard has its end, and the pictures that its writer counted.

    Where a picture does not fit on a full disk, img2dataset goes on behind it.
    """
    try:
        with open(tar, "rb") as file:
            file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read().strip(b"\0"):
                return False
        with tarfile.open(tar, "r:") as opened:
            return sum(name.endswith(_SUFFIXES) for name in opened.getnames()) == pictures
    except (OSError, tarfile.TarError):
        return False


def summarize(output: Path) -> None:
    """Write and print what became of all links."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    stats_files = done_in(output)
    for stats in map(read_json, stats_files):
        for name in ("count", "successes", "failed_to_download", "failed_to_resize"):
            counts[name] += stats[name]
        reasons.update(stats["status_dict"])
    del reasons["success"]
    summary = {"shards": len(stats_files), **counts, "reasons": dict(reasons.most_common(100))}
    write_json(output / SUMMARY, summary)
    links, pictures = counts["count"], counts["successes"]
    print(
        f"{links:,} links gave {pictures:,} pictures ({pictures / links:.1%}) "
        f"in {len(stats_files):,} shard(s): {output}"
    )
    for reason, count in reasons.most_common(SHOWN):
        print(f"  {count:>12,}  {' '.join(reason.split())[:100]}")


def parts_of(links: Path) -> dict[str, int]:
    """The rows of each file of links.

    Raises:
        MiniGPT4Error: where these are not whole.
    """
    if not (links / SUMMARY).is_file():
        raise MiniGPT4Error(
            f"{links}: no links, or not all of them, are there ({SUMMARY} is missing); "
            "dataset/convert_links.py makes them"
        )
    parts = read_json(links / SUMMARY).get("parts")
    if not isinstance(parts, dict) or not all(isinstance(rows, int) for rows in parts.values()):
        raise MiniGPT4Error(f"{links / SUMMARY}: was not written by dataset/convert_links.py")
    for name in parts:
        if not (links / name).is_file():
            raise MiniGPT4Error(f"{links / name}: missing; run dataset/convert_links.py again")
    return parts


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> None:
    description, epilog = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--processes", type=positive, default=16)
    parser.add_argument("--threads", type=positive, default=128, help="of each process")
    parser.add_argument("--shard-size", type=positive, default=10_000, help="links")
    arguments, extra = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for word in extra:
        if word.split("=")[0] in OURS:
            raise MiniGPT4Error(f"{word}: is given by this program; see --help for its own options")
    if not IMG2DATASET.is_file():
        raise MiniGPT4Error(f"{IMG2DATASET}: not there; run 'make dataset-env' first")
    arguments.input, arguments.output = arguments.input.resolve(), arguments.output.resolve()
    for folder in (arguments.input, arguments.output):
        if set("*?[]:") & set(str(folder)):  # img2dataset takes them for patterns and protocols
            raise MiniGPT4Error(f"{folder}: img2dataset cannot read a path with any of * ? [ ] :")
    signal.signal(signal.SIGTERM, end)
    download(arguments, extra, parts_of(arguments.input))


if __name__ == "__main__":
    run_guarded(main)
