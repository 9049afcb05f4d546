"""A sequence that was cut goes on as if it had not been."""

import itertools
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, DataSet
from minigpt4.processors import TrainImageProcessor
from tests.helpers.data_files import data_set, plant_pairs, plant_shards


@pytest.fixture
def datasets(tmp_path: Path) -> list[DataSet]:
    """Shards with bad samples between good ones, and a folder; the crops are random."""
    shards = list_shards(plant_shards(tmp_path / "shards"))
    folder = Path(plant_pairs(tmp_path / "pairs"))
    crop = TrainImageProcessor(4, random_crop=True)
    tars = replace(data_set(ShardSource(shards, 6), "tars", 2.0), image_processor=crop)
    pairs = data_set(AlignmentSource(folder), "pairs", 1.0)
    return [tars, replace(pairs, image_processor=crop, batch_size=2)]


def equal(one: Batch, other: Batch) -> bool:
    same = one["keys"] == other["keys"] and one["text"] == other["text"]
    return same and torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_from_every_step_the_sequence_goes_on_as_it_was(
    datasets: list[DataSet], workers: int, rank: int, ranks: int
) -> None:
    steps = 30
    whole = MixedLoader(datasets, 3, workers, 7, rank, ranks)
    batches, states, bad = [], [whole.state()], []
    for batch in itertools.islice(whole, steps):
        batches.append(batch)
        states.append(pickle.loads(pickle.dumps(whole.state())))
        bad += whole.take_bad()
    assert len(bad) > 20, "bad samples lay on the way"
    every = 1 if workers == 0 else 7
    for step in range(0, steps, every):
        rest = MixedLoader(datasets, 3, workers, 7, rank, ranks)
        rest.restore(states[step])
        told = itertools.islice(rest, min(steps - step, 12))
        for number, batch in enumerate(told, step):
            assert equal(batch, batches[number]), f"from step {step}, step {number} differs"
        assert rest.state() == states[number + 1]


def test_a_state_is_small_and_plain(datasets: list[DataSet]) -> None:
    loader = MixedLoader(datasets, 3, 8, 7)
    list(itertools.islice(loader, 20))

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return all(map(plain, value)) if isinstance(value, list) else isinstance(value, int)

    state = loader.state()
    assert plain(state)
    assert len(pickle.dumps(state)) < 8000


def test_another_number_of_readers_goes_on_in_a_new_order_and_says_so(
    datasets: list[DataSet], caplog: pytest.LogCaptureFixture
) -> None:
    loader = MixedLoader(datasets, 3, 0, 7)
    first = [batch["keys"] for batch in itertools.islice(loader, 6)]
    with caplog.at_level(logging.WARNING):
        rest = MixedLoader(datasets, 3, 0, 7, 0, 2)
        rest.restore(loader.state())
    assert "1 readers of tars, pairs, now there are 2" in caplog.records[-1].getMessage()
    anew = MixedLoader(datasets, 3, 0, 7, 0, 2)
    going_on, from_start = (
        [batch["keys"] for batch in itertools.islice(it, 6)] for it in (rest, anew)
    )
    assert going_on != from_start
    assert going_on != first
