"""Caption pictures of folders, globs and lists; JSON lines in input order, resumable."""

import argparse
import sys
from pathlib import Path

from minigpt4.apps.arguments import add_model_arguments, check_positive, check_text, plan_chat

_EPILOG = """
The same command goes on where an earlier one was cut short, also with another number of processes
(torchrun --nproc-per-node N -m minigpt4 caption ...) or another --batch-size. Words are drawn only
with chat.do_sample=True and a chat.seed. Exit code: 0 when there are captions, whatever pictures
could not be read (their rows tell why); 1 when there is not one; 2 for a mistake.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders (all pictures below them), globs, pictures, and .jsonl lists of "
        '{"image": "file, relative to the list", "prompt": "optional", ...}',
    )
    add("--output", type=Path, required=True, help="file of JSON lines")
    add(
        "--prompt",
        default="Describe this image in detail.",
        help="asked about every picture whose list names no other",
    )
    add("--batch-size", type=int, default=16, help="pictures answered together (default 16)")
    add("--num-workers", type=int, default=4, help="threads that read pictures (default 4)")
    add("--overwrite", action="store_true", help="start again, whatever the output holds")


def run(arguments: argparse.Namespace) -> None:
    check_positive(arguments, "batch_size", "num_workers")
    check_text(arguments, "prompt")
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.apps.captions import Job, write_captions
    from minigpt4.apps.captions_input import CaptionInput

    job = Job(
        CaptionInput(arguments.input, arguments.prompt),
        arguments.output,
        arguments.batch_size,
        arguments.num_workers,
        arguments.overwrite,
    )
    if not write_captions(plan, job, arguments.device):
        sys.exit(1)
