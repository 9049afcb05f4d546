"""What a worker saves that hands over bytes, and what torchvision saves it.

    python benchmarks/loader.py --json output/loader.json

Photo-like JPEGs in a shard go to the model's pixels as in a training, in turn by three modes:
``float`` normalises every picture where it is read, as was done before; ``uint8`` hands over
bytes, which are normalised by the batch; ``torchvision`` also decodes and resizes them by it
(``image_backend``). CPU time on one thread, medians. The bars hold the worker's part, which can
keep a GPU waiting: to read, to batch, to put into shared memory. The trainer's part, to normalise,
is the GPU's where there is one; it is told beside, and so are images a second of a DataLoader with
one worker, by the clock.
"""

import argparse
import io
import itertools
import json
import re
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from minigpt4.datasets.caption_shards import ShardSource
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, DataSet, to_device
from minigpt4.errors import ConfigError, run_guarded
from minigpt4.processors import PIXEL_MEAN, PIXEL_STD, TrainImageProcessor

SIDE = 224
BARS = {"uint8": 1.1, "torchvision": 2.0}  # times the images a second of float
MOST_LEVELS = 2  # of 255, between torchvision's pixels and PIL's
CPU = torch.device("cpu")

Figures = dict[str, dict[str, float]]  # mode → figures


def photo(height: int, width: int, drawn: np.random.Generator) -> bytes:
    """A JPEG with shapes of every size and some grain; at 480 x 640 it takes about 100 kB."""
    picture = np.full((height, width, 3), 128.0)
    for across, strength in ((6, 70), (25, 35), (100, 18), (300, 9)):
        coarse = drawn.normal(size=(max(2, across * height // width), across, 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            picture[..., channel] += strength * np.asarray(layer.resize((width, height)))
    picture += 3 * drawn.normal(size=(height, width, 1))
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_shard(path: Path, images: int, height: int, width: int, seed: int) -> float:
    """A shard of pairs; the mean size of a JPEG in bytes."""
    drawn = np.random.default_rng(seed)
    jpegs = [photo(height, width, drawn) for _ in range(images)]
    caption = json.dumps({"caption": "a picture"}).encode()
    with tarfile.open(path, "w") as tar:
        for number, jpeg in enumerate(jpegs):
            for suffix, content in (("jpg", jpeg), ("json", caption)):
                entry = tarfile.TarInfo(f"{number:05d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return statistics.mean(map(len, jpegs))


def datasets(shard: Path, batch: int) -> dict[str, DataSet]:
    # A window of one batch, which is the shard: every batch reads a whole tar.
    source = ShardSource([str(shard)], batch)
    whole = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE), interpolation=InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )
    processors = {
        "float": whole,
        "uint8": TrainImageProcessor(SIDE),
        "torchvision": TrainImageProcessor(SIDE, image_backend="torchvision"),
    }
    # All of one name, by which the order is drawn: they read the same pictures.
    return {mode: DataSet("photos", source, process, str) for mode, process in processors.items()}


def batches(dataset: DataSet, batch: int, workers: int) -> Iterator[Batch]:
    return iter(MixedLoader([dataset], batch, workers, seed=0))


def measure(modes: dict[str, DataSet], batch: int, repeats: int) -> Figures:
    """CPU milliseconds an image, and how far pixels lie apart.

    Args:
        modes: Data sets that read the same pictures.
        batch: Pictures of a batch.
        repeats: Batches of each mode, in turn; one more before them warms up.
    """
    readers = {mode: batches(dataset, batch, 0) for mode, dataset in modes.items()}
    took: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    unequal, levels = 0, 0
    for repeat in range(repeats + 1):
        handed: dict[str, torch.Tensor] = {}
        pixels: dict[str, torch.Tensor] = {}
        for mode, reader in readers.items():
            start = time.process_time()
            found = next(reader)
            found["image"].share_memory_()  # as a worker hands it over
            between = time.process_time()
            ready = to_device(found, CPU)
            end = time.process_time()
            if repeat:
                took[mode].append((between - start, end - between))
            handed[mode], pixels[mode] = found["image"], ready["image"]
        unequal += int(torch.ne(pixels["float"], pixels["uint8"]).sum())
        apart = handed["uint8"].int() - handed["torchvision"].int()
        levels = max(levels, int(apart.abs().max()))
    figures: Figures = {}
    for mode, times in took.items():
        worker, trainer = (
            1e3 * statistics.median(part) / batch for part in zip(*times, strict=True)
        )
        figures[mode] = {"worker_ms": worker, "trainer_ms": trainer}
    figures["uint8"]["unequal_to_float"] = unequal
    figures["torchvision"]["levels_off"] = levels
    return figures


def measure_clock(modes: dict[str, DataSet], batch: int, repeats: int) -> Figures:
    """Images a second that reach the trainer from one worker beside it, by the clock."""
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(repeats):
        for mode, dataset in modes.items():
            loader = MixedLoader([dataset], batch, 1, seed=0)
            reader = iter(loader)
            to_device(next(reader), CPU)  # waits for the worker's start
            start = time.perf_counter()
            for found in itertools.islice(reader, 2):
                to_device(found, CPU)
            rates[mode].append(2 * batch / (time.perf_counter() - start))
            loader.close()
    return {mode: {"images_per_second": statistics.median(found)} for mode, found in rates.items()}


def table(figures: Figures) -> str:
    columns = ("worker", "ratio", "trainer", "ratio of both", "one worker", "ratio")
    lines = [f"{'mode':<12}" + "".join(f"{column:>15}" for column in columns)]
    for mode, found in figures.items():
        cells = (
            f"{found['worker_ms']:.2f} ms",
            f"{found['ratio']:.2f}",
            f"{found['trainer_ms']:.2f} ms",
            f"{found['ratio_of_both']:.2f}",
            f"{found['images_per_second']:.0f} images/s",
            f"{found['ratio_by_clock']:.2f}",
        )
        lines.append(f"{mode:<12}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH``."""
    if not re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a height and width such as 480x640")
    height, width = text.split("x")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=size, default=(480, 640), metavar="HEIGHTxWIDTH")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    (height, width), batch, repeats = arguments.size, arguments.batch, arguments.repeats
    if min(batch, repeats) < 1:
        raise ConfigError("--batch and --repeats are at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            shard = Path(folder) / "0.tar"
            bytes_each = write_shard(shard, batch, height, width, arguments.seed)
            modes = datasets(shard, batch)
            figures = measure(modes, batch, repeats)
            for mode, found in measure_clock(modes, batch, repeats).items():
                figures[mode] |= found
    finally:
        torch.set_num_threads(threads)
    usual = figures["float"]
    for found in figures.values():
        both = found["worker_ms"] + found["trainer_ms"]
        found["ratio"] = usual["worker_ms"] / found["worker_ms"]
        found["ratio_of_both"] = (usual["worker_ms"] + usual["trainer_ms"]) / both
        found["ratio_by_clock"] = found["images_per_second"] / usual["images_per_second"]
    unequal = int(figures["uint8"]["unequal_to_float"])
    levels = int(figures["torchvision"]["levels_off"])
    print(f"{height} x {width}, {bytes_each / 1e3:.0f} kB a JPEG, to {SIDE} x {SIDE}")
    print(table(figures))
    print(
        f"pixels of uint8 other than float's: {unequal}; torchvision's: {levels} levels off at most"
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [
        f"{mode} below {bar} times float"
        for mode, bar in BARS.items()
        if figures[mode]["ratio"] < bar
    ]
    missed += ["uint8 gives other pixels than float"] if unequal else []
    missed += [f"torchvision more than {MOST_LEVELS} levels off"] if levels > MOST_LEVELS else []
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if missed else 0


if __name__ == "__main__":
    run_guarded(main)
