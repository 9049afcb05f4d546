"""Validation: what a training's model makes of the samples that its data sets hold out."""

import hashlib
import io
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minigpt4.assembly import build_task
from minigpt4.chat.core import Chat
from minigpt4.chat.generation import NonFiniteLogitsError
from minigpt4.chat.likelihood import output_fields
from minigpt4.checked import CheckedConfig
from minigpt4.datasets.loaders import leave_signals_to_the_trainer
from minigpt4.datasets.samples import Batch, DataSet, reference, to_device
from minigpt4.errors import ConfigError, DataError, MiniGPT4Error
from minigpt4.evaluation.figures import (
    SHUFFLED,
    Best,
    Figures,
    Sums,
    best_value,
    is_smaller_better,
)
from minigpt4.evaluation.files import Row, with_references
from minigpt4.evaluation.ordered_batches import OrderedBatches
from minigpt4.files import JsonLines, write_atomically
from minigpt4.metrics import build_metrics, score_rows
from minigpt4.models.minigpt4 import MiniGPT4
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.trainer import Validated

logger = logging.getLogger(__name__)


class Validation:
    """Measures a model on validation sets, and remembers the best.

    Does not affect the training: the RNG state is restored. Each sample is read by one process; the
    number of processes changes only the last digits of figures.

    Args:
        checked: Config of the training.
        model: Model of the training; only its prompts are kept.
        datasets: Data sets of the training; those without a validation set are ignored.
        processes: All processes of the run.
        folder: Folder of the run, for ``validation.jsonl`` and ``pictures/``.

    Raises:
        ConfigError: where no data set has a validation set.
        MiniGPT4Error: for a metric whose library is not installed.

    Attributes:
        best: The best validation so far.
        done_step: Step (of the whole run) of the latest validation; -1 before.
    """

    def __init__(
        self,
        checked: CheckedConfig,
        model: MiniGPT4,
        datasets: Sequence[DataSet],
        processes: Distributed,
        folder: Path,
    ) -> None:
        self._datasets = [dataset for dataset in datasets if dataset.eval_source is not None]
        if not self._datasets:
            raise ConfigError("run.valid_splits: no data set holds anything out")
        self._run, self._processes, self._folder = checked.run, processes, folder
        run = self._run
        if run.valid_captions:
            build_metrics(run.metrics)  # a missing library is reported before the first step
        self._task = build_task(checked, model, rank=0)  # one rank's prompts for all
        self._options = replace(checked.generation, do_sample=False)
        self._smallest = is_smaller_better(run.best_metric, run.best_mode)
        self.rows = JsonLines(folder / "validation.jsonl")
        self.best: Best | None = None
        self.done_step = -1

    def run(
        self, model: MiniGPT4, epoch: int, step: int, stopped: Callable[[], bool]
    ) -> Validated | None:
        """Measure every held-out sample once, and write the generated texts.

        Args:
            model: Model, which is in train mode again afterwards.
            epoch: Epoch of the training, from 0.
            step: Step within the epoch; 0 before the first.
            stopped: Returns whether the run was told to stop, which ends the validation.

        Returns:
            Figures of each data set, the same in every process; None if the run was stopped.

        Raises:
            DataError: for a data set that holds out no readable sample.
            MiniGPT4Error: where a file cannot be written, or a metric fails.
        """
        figures: Figures = {}
        rows: list[Row] = []
        with _undisturbed(model):
            for dataset in self._datasets:
                try:
                    own = self._own_share(model, dataset, stopped)
                except MiniGPT4Error as error:
                    error.rank_local = True  # the other processes do not know of it
                    raise
                found = self._summarise(dataset.name, self._processes.gather([own]))
                if found is None:
                    return None
                figures[dataset.name], told = found
                rows += ({"epoch": epoch, "step": step, "data_set": dataset.name} | r for r in told)
        if self._processes.main:
            self._write(rows)
        is_best = self._is_best(figures, epoch, step)
        return Validated(figures, asdict(self.best) if is_best and self.best else None)

    def _is_best(self, figures: Figures, epoch: int, step: int) -> bool:
        """Whether no earlier validation was as good; remembers it then."""
        value = best_value(self._run.best_metric, figures)
        if value is None:
            return False
        before = self.best.value if self.best else math.inf if self._smallest else -math.inf
        if not (value < before if self._smallest else value > before):
            return False
        self.best = Best(self._run.best_metric, value, epoch, step)
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as plain values."""
        best = asdict(self.best) if self.best else None
        own = {"best": best, "done_step": self.done_step, "bytes": self.rows.size}
        return {"validation": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave, in the same folder."""
        own = state.get("validation")
        if not own:  # a run that was begun without validation
            return
        self.best = Best(**own["best"]) if own["best"] else None
        self.done_step = own["done_step"]
        if self._processes.main:
            self.rows.truncate(own["bytes"])

    def _own_share(
        self, model: MiniGPT4, dataset: DataSet, stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        """Counts, sums and rows of the batches that this process reads."""
        batches = OrderedBatches(
            dataset, self._run.batch_size_eval, self._processes.rank, self._processes.count
        )
        chat = Chat(model, batches.dataset.image_processor, self._options)
        counts = {"samples": 0, "unreadable": 0, "left": 0}
        sums, shuffled = Sums(), Sums()
        rows: list[Row] = []
        first_bad = ""
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=self._run.num_workers,
            worker_init_fn=leave_signals_to_the_trainer,
        )
        for found in loader:
            if stopped():
                counts["left"] = 1
                break
            counts["samples"] += len(found.numbers) + len(found.unreadable)
            counts["unreadable"] += len(found.unreadable)
            for bad in found.unreadable.values():
                first_bad = first_bad or f"{bad.key}: {bad.reason}"
            if found.batch is None:
                continue
            pixels = found.batch["image"]
            batch = _encoded(model, to_device(found.batch, model.device))
            targets = self._task.rows(model, batch, found.numbers[0])
            sums.add(model.target_scores(batch["image"], targets))
            other = _with_other_pictures(batch) if self._run.valid_control else None
            if other is not None:
                shuffled.add(model.target_scores(other["image"], targets))
            wanted = sum(number < self._run.valid_captions for number in found.numbers)
            if wanted:
                asked = [_first_of(each, wanted) for each in (batch, other) if each is not None]
                rows += self._generated(chat, asked, found.numbers[:wanted], pixels)
        own: dict[str, Any] = {"counts": counts, "bad": first_bad, "rows": rows}
        return own | {"sums": sums, "shuffled": shuffled}

    def _generated(
        self, chat: Chat, asked: Sequence[Batch], numbers: list[int], pixels: torch.Tensor
    ) -> list[Row]:
        """Return rows with the model's answers to the samples of a batch, and their images.

        Args:
            chat: Chat with the model.
            asked: The batch; with a control, also the batch with other images.
            numbers: Places of its samples in the data set.
            pixels: Pixels of its images, as the workers gave them.
        """
        try:
            said, *others = [self._task.evaluation_step(chat, each, numbers) for each in asked]
        except NonFiniteLogitsError as error:  # no reason to end the training
            logger.warning("validation: no texts of %d samples: %s", len(numbers), error)
            return []
        batch, rows, place = asked[0], [], 0
        for index, count in enumerate(batch["image_counts"]):
            row = {"number": numbers[index], "image": batch["keys"][index]}
            row |= {"reference": reference(batch["text"][index]), **batch["facts"][index]}
            row |= output_fields(said[index])
            if others:
                row["shuffled"] = str(others[0][index])
            if count:
                row["thumbnail"] = _as_png(pixels[place])
            rows.append(row)
            place += count
        return rows

    def _summarise(
        self, name: str, shares: list[dict[str, Any]]
    ) -> tuple[dict[str, float], list[Row]] | None:
        """One data set's figures and rows out of every process's share."""
        total = {key: sum(share["counts"][key] for share in shares) for key in shares[0]["counts"]}
        if total.pop("left"):
            return None
        sums, shuffled = Sums(), Sums()
        for share in shares:
            sums.add(share["sums"])
            shuffled.add(share["shuffled"])
        if not sums.tokens:
            first = next((share["bad"] for share in shares if share["bad"]), "")
            text = f"datasets.{name}: nothing that can be read is held out for the validation"
            raise DataError(f"{text}; the first: {first}" if first else text)
        figures: dict[str, float] = dict(total)
        if not total["unreadable"]:
            del figures["unreadable"]
        figures |= sums.figures()
        rows = sorted((row for share in shares for row in share["rows"]), key=itemgetter("number"))
        figures |= self._score(rows, "output", "score")
        if shuffled.tokens:
            figures |= {SHUFFLED + key: value for key, value in shuffled.figures().items()}
            other = [row for row in rows if "shuffled" in row]
            found = self._score(other, "shuffled", "shuffled_score")
            figures |= {SHUFFLED + key: value for key, value in found.items()}
        return figures, rows

    def _score(self, rows: Sequence[Row], field: str, into: str) -> dict[str, float]:
        """Means of the metrics over rows, to each of which its own scores are added."""
        if not rows:
            return {}
        answered = with_references([{**row, "output": row[field]} for row in rows])
        scores = score_rows(self._run.metrics, answered)
        for row, own in zip(rows, scores.rows, strict=True):
            row[into] = own
        return scores.means

    def _write(self, rows: Sequence[Row]) -> None:
        """Append the rows; each image is kept once, under a name made from its pixels."""
        lines = []
        for row in rows:
            kept = {key: value for key, value in row.items() if key not in ("number", "thumbnail")}
            if "thumbnail" in row:
                name = hashlib.blake2b(row["thumbnail"], digest_size=8).hexdigest()
                kept["picture"] = f"pictures/{name}.png"
                self._keep_picture(self._folder / kept["picture"], row["thumbnail"])
            lines.append(kept)
        if lines:
            self.rows.append(*lines)

    def _keep_picture(self, path: Path, content: bytes) -> None:
        with suppress(OSError):  # the writing fails then, too
            path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_atomically(path, lambda file: file.write(content))


@contextmanager
def _undisturbed(model: MiniGPT4) -> Iterator[None]:
    """Around what must leave no trace in a training: modes, random numbers, compiled graphs."""
    training = model.training
    states = random.getstate(), numpy.random.get_state()
    model.train(False)
    try:
        # Generation's shapes are many: graphs made for each would cost more than they bring.
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        model.train(training)


@torch.no_grad()
def _encoded(model: MiniGPT4, batch: Batch) -> Batch:
    """Return the batch with features in place of its images, which are used several times."""
    if not len(batch["image"]):
        return batch
    with model.autocast(model.device):
        features = model.encode_frozen(batch["image"])
    return Batch(**{**batch, "image": features})  # type: ignore[typeddict-item]


def _with_other_pictures(batch: Batch) -> Batch | None:
    """Return the batch with each image replaced by the next; None where there is no other."""
    if len(batch["image"]) < 2:
        return None
    return Batch(**{**batch, "image": batch["image"].roll(-1, 0)})  # type: ignore[typeddict-item]


def _first_of(batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch."""
    counts = batch["image_counts"][:count]
    return Batch(
        keys=batch["keys"][:count],
        image=batch["image"][: sum(counts)],
        image_counts=counts,
        text=batch["text"][:count],
        facts=batch["facts"][:count],
        normalise=batch["normalise"],
    )


def _as_png(pixels: torch.Tensor) -> bytes:
    """Return an image ``[3, s, s]``, bytes or normalised numbers, as a PNG file."""
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(file, "PNG")
    return file.getvalue()
