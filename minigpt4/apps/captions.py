"""Captions: many images, one question about each → one ordered file, by one or more processes.

Batches depend on the input and the batch size alone: neither the number of processes nor an
interruption changes a caption.
"""

import itertools
import logging
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.apps.arguments import ChatPlan
from minigpt4.apps.captions_input import CaptionInput, Row
from minigpt4.apps.captions_output import CaptionOutput, settings_of
from minigpt4.assembly import build_accelerator
from minigpt4.chat import Chat, GenerationOptions
from minigpt4.datasets.images import load_image
from minigpt4.errors import ConfigError, DataError, MiniGPT4Error
from minigpt4.processors import ImageProcessor
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import ComputeOptions, Device, RunOptions

_WINDOW = 16  # batches within which rows are sorted by length: what waits to be written is bounded
_AHEAD = 3  # batches whose pictures are read while the model answers
_TIMEOUT = 3600.0  # seconds that one process may be behind the others

Batch = list[tuple[int, Row]]  # rows with their place in the input
Numbered = list[tuple[int, dict[str, Any]]]  # rows of the output, likewise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to caption, and how."""

    rows: CaptionInput
    output: Path
    batch_size: int = 16  # images answered together
    threads: int = 4  # that read images in the background
    overwrite: bool = False  # start again, whatever the output holds


def write_captions(plan: ChatPlan, job: Job, device: Device) -> bool:
    """Caption all rows that the output lacks; return whether there is at least one caption."""
    if any(job.output.resolve() == file.resolve() for file in job.rows.lists):
        raise ConfigError(f"--output {job.output}: is an input; choose another")
    accelerator = build_accelerator(ComputeOptions(device=device))
    processes = Distributed(accelerator, _TIMEOUT)
    total, digest = job.rows.measure()
    if not total:
        raise ConfigError("--input: there is no row in it")
    if len(set(processes.gather([digest]))) > 1:
        raise DataError("--input: changed while it was read; give the same command again")
    settings = settings_of(plan.config, job.rows.prompt, total, digest)
    output, done = _open_output(processes, job, settings)
    try:
        if done < total:
            set_seed(plan.config.run.get("seed", RunOptions.seed))  # of an untrained projection
            own = plan if processes.count == 1 else replace(plan, device=accelerator.device)
            chat = own.load()
            if processes.main:
                _warn(plan, chat)
            _work(chat, job, processes, output, done, total)
        accelerator.end_training()
        return output is None or _summarise(output, done == total)
    finally:
        if output is not None:
            output.close()


def _open_output(
    processes: Distributed, job: Job, settings: dict[str, Any]
) -> tuple[CaptionOutput | None, int]:
    """Return the output, which only the main process has, and how many rows are done."""
    output: CaptionOutput | None = None
    told: list[int | MiniGPT4Error] = []
    if processes.main:
        try:
            output = CaptionOutput(job.output, settings, job.overwrite)
            told = [output.rows]
        except MiniGPT4Error as error:
            told = [error]
    (done,) = processes.gather(told)
    if isinstance(done, MiniGPT4Error):
        raise done
    return output, done


def caption_options(options: GenerationOptions) -> GenerationOptions:
    """Return options without sampling unless there is a seed: a resumed run must be the same."""
    return replace(options, do_sample=options.do_sample and options.seed is not None)


def _warn(plan: ChatPlan, chat: Chat) -> None:
    if not plan.config.model.get("ckpt"):
        logger.warning("model.ckpt names no projection: an untrained one writes the captions")
    if chat.options.do_sample and chat.options.seed is None:
        logger.info("captions take the likeliest words; chat.seed=0 would draw them")
    if isinstance(chat.image_processor, ImageProcessor) and chat.image_processor.random:
        logger.warning("the image processor is random: another run gives other captions")


def _work(
    chat: Chat,
    job: Job,
    processes: Distributed,
    output: CaptionOutput | None,
    done: int,
    total: int,
) -> None:
    """Answer all batches that hold a row not yet done; all processes go in step."""
    options = caption_options(chat.options)
    batches = make_batches(job.rows, job.batch_size, done)
    turns = itertools.zip_longest(*[batches] * processes.count, fillvalue=Batch())
    own = (turn[processes.rank] for turn in turns)
    interval = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
    with (
        logging_redirect_tqdm(),
        tqdm(
            desc="captions",
            total=total,
            initial=done,
            disable=not processes.main,
            mininterval=interval,
            unit="picture",
        ) as bar,
    ):
        for batch, pictures in read_ahead(own, chat, job.threads):
            rows = processes.gather(_answer(chat, options, batch, pictures, processes.rank))
            if output is not None:
                bar.update(output.add(rows))


def make_batches(rows: Iterable[Row], batch_size: int, done: int = 0) -> Iterator[Batch]:
    """Yield batches of rows with prompts of about the same length, for little padding.

    Batches of the first ``done`` rows only are left out.
    """
    numbered = enumerate(rows)
    while window := list(itertools.islice(numbered, batch_size * _WINDOW)):
        # Longest first: what does not fit into memory fails at once.
        window.sort(key=lambda pair: -len(pair[1].prompt))
        for first in range(0, len(window), batch_size):
            batch = window[first : first + batch_size]
            if any(number >= done for number, _ in batch):
                yield batch


def read_ahead(
    batches: Iterable[Batch], chat: Chat, threads: int
) -> Iterator[tuple[Batch, list[torch.Tensor | DataError]]]:
    """Yield batches with the pixels of their images, which threads read while the model answers.

    An image that cannot be read is an error.
    """

    def read(path: Path) -> torch.Tensor | DataError:
        try:
            return chat.image_processor(load_image(path, shown=True))
        except DataError as error:
            return error

    waiting: deque[tuple[Batch, list[Future[torch.Tensor | DataError]]]] = deque()

    def take() -> tuple[Batch, list[torch.Tensor | DataError]]:
        batch, futures = waiting.popleft()
        return batch, [future.result() for future in futures]

    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Around all threads: filters that each one sets would undo each other.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            for batch in batches:
                waiting.append((batch, [pool.submit(read, row.path) for _, row in batch]))
                if len(waiting) > _AHEAD:
                    yield take()
            while waiting:
                yield take()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    chat: Chat,
    options: GenerationOptions,
    batch: Batch,
    pictures: Sequence[torch.Tensor | DataError],
    rank: int,
) -> Numbered:
    """Return the output rows of one batch."""
    try:
        captions = chat.ask_each([row.prompt for _, row in batch], pictures, options)
    except (MiniGPT4Error, torch.OutOfMemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            text = f"the GPU's memory is too small for {len(batch)} pictures at once"
            error = MiniGPT4Error(f"{text}; go on with a smaller --batch-size")
        error.rank_local = rank > 0  # the others do not know
        raise error from None
    return [(number, row.told(text)) for (number, row), text in zip(batch, captions, strict=True)]


def _summarise(output: CaptionOutput, was_done: bool) -> bool:
    """Log the figures of the output; return whether there is at least one caption."""
    if was_done:
        logger.info("nothing to do: all rows are there")
    captions = output.rows - output.failed
    text = "%s: %d rows; captions: %d, errors: %d"
    logger.info(text, output.path, output.rows, captions, output.failed)
    return captions > 0
