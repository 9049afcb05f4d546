"""Evaluation: every sample of the data sets once → outputs, scores and a summary on disk.

``train.py`` comes here with ``run.evaluate: True``, and so does ``python -m minigpt4 evaluate``.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.chat import Chat, GenerationOptions, generation_options
from minigpt4.config import Config
from minigpt4.datasets.samples import DataSet, reference, to_device
from minigpt4.datasets.streams import OrderedBatch, OrderedBatches
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.files import write_atomically
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors.image_processors import ImageProcessor
from minigpt4.registry import TASKS
from minigpt4.runners.preflight import check_evaluation
from minigpt4.runners.preparation import (
    build_datasets,
    build_model,
    make_accelerator,
    run_settings,
)
from minigpt4.tasks.metrics import score

Row = dict[str, Any]  # image, reference, output, score; or image, error
Summary = dict[str, dict[str, float]]  # data set → samples, unreadable, and each metric's mean

logger = logging.getLogger(__name__)


def run_evaluation(config: Config) -> Summary:
    """The evaluation that a config describes, from its check to its files.

    Raises:
        MiniGPT4Error: for a fault in the config, the weights, the data or a metric.
    """
    check_evaluation(config)
    settings = run_settings(config)
    accelerator = make_accelerator(settings["device"])
    set_seed(settings["seed"])  # an untrained projection must be the same in every process
    datasets = build_datasets(config, pictures=True)
    model = build_model(config, accelerator.device)
    if accelerator.is_main_process and not config.model.get("ckpt"):
        logger.warning("model.ckpt names no projection: an untrained one is evaluated")
    summary = evaluate(model, datasets, accelerator, settings, generation_options(config))
    accelerator.end_training()
    return summary


def evaluate(
    model: MiniGPT4,
    datasets: Sequence[DataSet],
    accelerator: Accelerator,
    settings: dict[str, Any],
    options: GenerationOptions,
) -> Summary:
    """Generate for every sample without drawing, score, and write what came out.

    ``<output_dir>/<data set>.jsonl`` holds a row for each sample, ``<output_dir>/summary.json`` the
    summary; each is written whole or not at all, by the main process.

    Args:
        model: With the projection to evaluate.
        datasets: At least one.
        accelerator: Processes and device; the number of processes does not change the files.
        settings: Of the run: task, seed, metrics, batch_size_eval, num_workers, output_dir.
        options: How to generate; always without sampling.

    Returns:
        For each data set the number of its samples, of those that cannot be read, and the mean of
        each metric over the others.

    Raises:
        DataError: for a data set without a single sample that can be read.
    """
    rank, main = accelerator.process_index, accelerator.is_main_process
    task = TASKS.build(
        settings["task"], {}, prompts=model.prompts, seed=settings["seed"], rank=rank
    )
    folder = Path(settings["output_dir"])
    if main:
        _make_folder(folder)
    summary: Summary = {}
    for dataset in datasets:
        processor = dataset.eval_image_processor or dataset.image_processor
        if main and isinstance(processor, ImageProcessor) and processor.random:
            text = "datasets.%s: its image processor is random; vis_processor.eval can name another"
            logger.warning(text, dataset.name)
        chat = Chat(model, processor, replace(options, do_sample=False))
        rows = _evaluate_data_set(task, chat, dataset, accelerator, settings)
        summary[dataset.name] = _summarise(dataset.name, rows)
        if main:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            _write(folder / f"{dataset.name}.jsonl", "".join(lines))
    if main:
        _write(folder / "summary.json", json.dumps(summary, ensure_ascii=False, indent=2) + "\n")
        logger.info("%s\noutputs and scores: %s", _table(summary), folder)
    return summary


def _evaluate_data_set(
    task: Any,
    chat: Chat,
    dataset: DataSet,
    accelerator: Accelerator,
    settings: dict[str, Any],
) -> list[Row]:
    """A row for each sample, in the order of the data set; the same in every process."""
    share = (accelerator.process_index, accelerator.num_processes)
    batches = OrderedBatches(dataset, settings["batch_size_eval"], *share)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=settings["num_workers"]))
    rows: list[Row] = []
    calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
    with (
        logging_redirect_tqdm(),
        tqdm(
            desc=dataset.name,
            total=batches.dataset.source.units if dataset.length else None,
            disable=not accelerator.is_main_process,
            mininterval=calm,
        ) as bar,
    ):
        # The processes go in step, batch by batch; one whose batches are all done adds nothing.
        while found := gather_object(_answer(task, chat, next(loader, None))):
            for row in found:
                if "error" not in row:
                    row["score"] = score(settings["metrics"], row["output"], row["reference"])
            rows += found
            bar.update(len(found))
    return rows


def _answer(task: Any, chat: Chat, batch: OrderedBatch | None) -> list[Row]:
    """The rows of one process's batch, not yet scored."""
    if batch is None:
        return []
    rows: dict[int, Row] = {
        number: {"image": bad.key, "error": bad.reason} for number, bad in batch.unreadable.items()
    }
    if batch.batch is not None:
        ready = to_device(batch.batch, chat.model.device)
        outputs = task.evaluation_step(chat, ready, batch.numbers)
        keys, texts = ready["keys"], map(reference, ready["text"])
        for number, *told in zip(batch.numbers, keys, texts, outputs, strict=True):
            rows[number] = dict(zip(("image", "reference", "output"), told, strict=True))
    return [rows[number] for number in sorted(rows)]


def _summarise(name: str, rows: Sequence[Row]) -> dict[str, float]:
    """Counts, and the mean of each metric over the samples that could be read."""
    scored = [row["score"] for row in rows if "score" in row]
    unreadable = [row for row in rows if "error" in row]
    if not scored:
        first = f"; the first: {unreadable[0]['image']}: {unreadable[0]['error']}"
        raise DataError(f"datasets.{name}: no readable sample{first if unreadable else ''}")
    means = {metric: sum(s[metric] for s in scored) / len(scored) for metric in scored[0]}
    return {"samples": len(rows), "unreadable": len(unreadable), **means}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniGPT4Error(
            f"run.output_dir: {folder} cannot be written ({error}); choose another folder"
        ) from error


def _write(path: Path, text: str) -> None:
    # Half a surrogate pair, which a caption's json may hold, becomes the escape that json has.
    content = text.encode("utf-8", errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content))


def _table(summary: Summary) -> str:
    """The summary as people read it."""
    columns = ["data set", *next(iter(summary.values()))]
    lines = [columns] + [
        [name, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in figures.values())]
        for name, figures in summary.items()
    ]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("  ".join(cells) for cells in padded)
