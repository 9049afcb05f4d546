"""Evaluation: every sample of the data sets once → outputs, scores and a summary on disk.

``train.py`` comes here with ``run.evaluate: True``, and so does ``python -m minigpt4 evaluate``.
"""

import inspect
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.assembly import build_accelerator, build_datasets, build_model, build_task
from minigpt4.chat.core import Chat
from minigpt4.chat.likelihood import output_fields
from minigpt4.checked import CheckedConfig
from minigpt4.datasets.samples import DataSet, reference, to_device
from minigpt4.errors import ConfigError, MiniGPT4Error
from minigpt4.evaluation.files import (
    OutputFolder,
    Row,
    Summary,
    check_outputs,
    score_outputs,
    table,
)
from minigpt4.evaluation.ordered_batches import OrderedBatch, OrderedBatches
from minigpt4.metrics import Parts, build_metrics
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.processors import ImageProcessor
from minigpt4.registry import TASKS
from minigpt4.runners.options import RunOptions
from minigpt4.tasks import Task

logger = logging.getLogger(__name__)


def run_evaluation(
    checked: CheckedConfig, parts: Parts | None = None, question: str | None = None
) -> Summary:
    """Generate for every sample without sampling, score, and write what came out.

    ``<output_dir>/<data set>.jsonl`` holds a row for each sample, ``<output_dir>/summary.json`` the
    summary; each is written whole or not at all, by the main process. Outputs are written before
    they are scored, so a metric that fails loses none. The number of processes changes no file.

    Args:
        checked: The config.
        parts: Parts that metrics need in addition to rows.
        question: Question for every sample; None: as the model was trained.

    Returns:
        For each data set the number of its samples, of those that cannot be read, and each metric's
        mean over the others with its interval; empty in other processes than the main one.

    Raises:
        DataError: for a data set without a single sample that can be read.
        MiniGPT4Error: for an error in the weights, the data or a metric.
    """
    run = checked.run
    build_metrics(run.metrics, parts)  # a missing part is reported before hours of work
    folder = OutputFolder(Path(run.output_dir))
    folder.check([*checked.datasets])
    accelerator = build_accelerator(run)
    set_seed(run.seed)  # an untrained projection must be the same in every process
    datasets = build_datasets(checked, images=True)
    model = build_model(checked, accelerator.device)
    main = accelerator.is_main_process
    if main and not checked.config.model.get("ckpt"):
        logger.warning("model.ckpt names no projection: an untrained one is evaluated")
    task = _build_task(checked, model, accelerator.process_index, question)
    options = replace(checked.generation, do_sample=False)
    rows: dict[str, list[Row]] = {}
    for dataset in datasets:
        processor = dataset.eval_image_processor or dataset.image_processor
        if main and isinstance(processor, ImageProcessor) and processor.random:
            text = "datasets.%s: its image processor is random; vis_processor.eval can name another"
            logger.warning(text, dataset.name)
        own = _evaluate_data_set(task, Chat(model, processor, options), dataset, accelerator, run)
        if question is not None:
            own = [row if "error" in row else {**row, "question": question} for row in own]
        check_outputs(dataset.name, own)
        if main:
            folder.write_outputs(dataset.name, own)
        rows[dataset.name] = own
    summary: Summary = {}
    try:
        if main:
            summary = _score(folder, rows, run.metrics, parts)
    except MiniGPT4Error as error:
        advice = f"evaluate --rescore --output {folder.path} scores them without generating"
        fault = MiniGPT4Error(f"{error}; the outputs are safe: {advice}")
        fault.exit_code = error.exit_code
        raise fault from error
    accelerator.end_training()
    return summary


def rescore(path: Path, metrics: Sequence[str], parts: Parts | None = None) -> Summary:
    """Score the outputs of an earlier evaluation again, in its folder; new scores replace old ones.

    Raises:
        MiniGPT4Error: for a folder without outputs, or a metric that fails.
    """
    build_metrics(metrics, parts)
    folder = OutputFolder(path)
    return _score(folder, folder.read_outputs(), metrics, parts)


def _score(
    folder: OutputFolder,
    rows: dict[str, list[Row]],
    metrics: Sequence[str],
    parts: Parts | None,
) -> Summary:
    summary = {name: score_outputs(name, own, metrics, parts) for name, own in rows.items()}
    folder.write_scores(rows, summary)
    logger.info("%s\noutputs and scores: %s", table(summary), folder.path)
    return summary


def _build_task(checked: CheckedConfig, model: MiniGPT4, rank: int, question: str | None) -> Task:
    name = checked.run.task
    if question is None:
        return build_task(checked, model, rank)
    if "question" not in inspect.signature(TASKS.get(name)).parameters:
        raise ConfigError(f"--prompt: the task {name!r} takes no question; leave it out")
    return build_task(checked, model, rank, question=question)


def _evaluate_data_set(
    task: Task,
    chat: Chat,
    dataset: DataSet,
    accelerator: Accelerator,
    run: RunOptions,
) -> list[Row]:
    """Return a row for each sample, in the order of the data set; the same in every process."""
    share = (accelerator.process_index, accelerator.num_processes)
    batches = OrderedBatches(dataset, run.batch_size_eval, *share)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=run.num_workers))
    rows: list[Row] = []
    bar = tqdm(
        desc=dataset.name,
        total=batches.dataset.source.units if dataset.length else None,
        disable=not accelerator.is_main_process,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,  # seconds between lines; few in a file
    )
    with logging_redirect_tqdm(), bar:
        # The processes go in step, batch by batch; one whose batches are all done adds nothing.
        while found := gather_object(_answer(task, chat, next(loader, None))):
            rows += found
            bar.update(len(found))
    return rows


def _answer(task: Task, chat: Chat, batch: OrderedBatch | None) -> list[Row]:
    """The rows of one process's batch."""
    if batch is None:
        return []
    rows: dict[int, Row] = {
        number: {"image": bad.key, "error": bad.reason} for number, bad in batch.unreadable.items()
    }
    if batch.batch is not None:
        ready = to_device(batch.batch, chat.model.device)
        outputs = task.evaluation_step(chat, ready, batch.numbers)
        keys, texts = ready["keys"], map(reference, ready["text"])
        facts = ready.get("facts") or [{} for _ in keys]
        answered = zip(batch.numbers, keys, texts, facts, outputs, strict=True)
        for number, key, text, known, output in answered:
            rows[number] = {"image": key, "reference": text, **known, **output_fields(output)}
    return [rows[number] for number in sorted(rows)]
