"""Look inside: the words nearest to image tokens, and where an answer looks in the picture."""

import argparse
import logging
from pathlib import Path
from typing import Any

from minigpt4.apps.arguments import add_model_arguments, check_positive, check_text, plan_chat
from minigpt4.errors import ConfigError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--image", nargs="+", type=Path, required=True, metavar="FILE", help="each on its own")
    add("--prompt", default="Describe this image in detail.", help="asked about every picture")
    add("--answer", help="look at this text, not at the model's own greedy answer")
    add("--layer", type=int, help="of the language model, from 0; without: mean")
    add("--count", type=int, default=5, help="nearest words of each image token (default 5)")
    add("--output", type=Path, required=True, metavar="DIR", help="for looks.json and pictures")


def run(arguments: argparse.Namespace) -> None:
    check_positive(arguments, "count")
    check_text(arguments, "prompt", "answer")
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.chat import open_image
    from minigpt4.tools.interpret import write_looks

    for file in arguments.image:
        open_image(file)  # before the model loads
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"--output {arguments.output}: no folder to write into ({error.strerror})"
        raise ConfigError(f"{text}; choose another") from error
    chat = plan.load()
    options = (arguments.prompt, arguments.answer, arguments.layer, arguments.count)
    for entry in write_looks(chat, arguments.image, arguments.output, *options):
        print(_table(entry))
    logger.info("%s: looks.json and its pictures", arguments.output)


def _table(entry: dict[str, Any]) -> str:
    lines = [f"\n{entry['image']}: {entry['prompt']}", f"  {entry['answer']}", ""]
    lines.append("  image token  nearest words, by cosine")
    near = entry["nearest_words"]
    for number, row in enumerate(near):
        words = "   ".join(f"{word.strip() or repr(word)} {cosine:.2f}" for word, cosine in row)
        lines.append(f"  {number:>11}  {words}")
    nearest = sum(row[0][1] for row in near) / len(near)
    chance = entry["chance_cosines"]
    lines.append(
        f"  The nearest word's cosine is {nearest:.2f} on average; of random directions it is "
        f"{chance['random']:.2f},\n  through an untrained projection {chance['untrained']:.2f}."
    )
    lines += ["", "  attention to the image, of all that a token gives"]
    for seen in entry["overlays"]:
        lines.append(f"  {100 * seen['image_share']:>9.1f} %  {seen['token'].strip()}")
    return "\n".join(lines)
