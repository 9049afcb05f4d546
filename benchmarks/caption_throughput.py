"""Captions in batches against captions one by one: pictures per second, and the same words.

    python benchmarks/caption_throughput.py --json output/caption_throughput.json

Pictures of drawn scenes are captioned as ``python -m minigpt4 caption`` does it, with batches of 16
and of 1 in turn; the ratio of the medians is held against its bar. Without a trained projection
(``make quickstart``) an untrained one is taken. Exit code 1 below the bar, when a caption differs,
or when there was nothing to caption.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from minigpt4.errors import NothingCheckedError, run_guarded  # noqa: E402
from minigpt4.tools.tiny_world.scenes import draw_scene, sample_scene  # noqa: E402

CONFIG = "eval_configs/tiny_eval.yaml"
TRAINED = Path("output/quickstart/stage2.pth")
QUESTION = "Describe this image in detail."
BATCH_SIZE = 16
BAR = 2.5


def draw_pictures(folder: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        draw_scene(sample_scene(rng)).save(folder / f"{number:05d}.jpg", quality=95)


def caption(chat: Any, folder: Path, batch_size: int) -> tuple[list[str], float]:
    """Captions of a folder's pictures in order, and the seconds they took."""
    from minigpt4.apps.captions import caption_options, make_batches, read_ahead
    from minigpt4.apps.captions_input import CaptionInput

    rows = CaptionInput([str(folder)], QUESTION)
    options = caption_options(chat.options)
    found: dict[int, str] = {}
    since = time.perf_counter()
    for batch, pictures in read_ahead(make_batches(rows, batch_size), chat, threads=4):
        texts = chat.ask_each([row.prompt for _, row in batch], pictures, options)
        found.update((number, str(text)) for (number, _), text in zip(batch, texts, strict=True))
    return [found[number] for number in sorted(found)], time.perf_counter() - since


def compare(chat: Any, folder: Path, repeats: int) -> dict[str, Any]:
    """The figures of both batch sizes, measured in turn."""
    seconds: dict[int, list[float]] = {BATCH_SIZE: [], 1: []}
    captions: dict[int, list[str]] = {}
    for size in seconds:
        captions[size], _ = caption(chat, folder, size)  # also warms up
    for _ in range(repeats):
        for size, taken in seconds.items():
            taken.append(caption(chat, folder, size)[1])
    one, many = statistics.median(seconds[1]), statistics.median(seconds[BATCH_SIZE])
    count = len(captions[1])
    return {
        "pictures": count,
        "pictures_per_second_batch_1": round(count / one, 2),
        f"pictures_per_second_batch_{BATCH_SIZE}": round(count / many, 2),
        "ratio": round(one / many, 2),
        "ratios": [round(a / b, 2) for a, b in zip(seconds[1], seconds[BATCH_SIZE], strict=True)],
        "equal_captions": sum(a == b for a, b in zip(*captions.values(), strict=True)),
        "bar": BAR,
    }


def held(figures: dict[str, Any]) -> bool:
    """Whether the bar is reached and no caption differs."""
    return figures["ratio"] >= figures["bar"] and figures["equal_captions"] == figures["pictures"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=96, help="pictures (default 96)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each batch size")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--options", nargs="*", default=[], metavar="a.b=c")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if arguments.images < 1 or arguments.repeats < 1:
        raise NothingCheckedError("--images and --repeats: there is nothing to caption")
    import torch

    from minigpt4.chat import load_chat

    torch.manual_seed(arguments.seed)
    projection = [] if TRAINED.is_file() else ["model.ckpt="]
    chat = load_chat(CONFIG, [*projection, *arguments.options], arguments.device)
    with tempfile.TemporaryDirectory() as name:
        draw_pictures(Path(name), arguments.images, arguments.seed)
        figures = compare(chat, Path(name), arguments.repeats)
    figures |= {"seed": arguments.seed, "device": str(chat.model.device)}
    figures["projection"] = "untrained" if projection else "trained"
    ok = held(figures)
    for name, value in figures.items():
        print(f"{name:<30}{value}")
    print("held" if ok else "MISSED")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    run_guarded(main)
