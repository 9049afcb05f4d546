import contextlib
import gc
import itertools
import logging
import multiprocessing
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.images import load_image
from minigpt4.datasets.loaders import MixedLoader
from minigpt4.datasets.samples import Batch, DataSet, RawSample, to_device
from minigpt4.errors import DataError
from minigpt4.processors import ImageProcessor, TrainImageProcessor
from tests.helpers.data_files import (
    data_set,
    noise,
    pair,
    plant_pairs,
    plant_shards,
    write_shards,
    write_tar,
)
from tests.helpers.messages import one_line


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "shards", 4, 5)


def mine(shards: list[str], name: str = "mine", ratio: float = 1.0) -> DataSet:
    return data_set(ShardSource(shards, 10), name, ratio)


def batches(
    datasets: list[DataSet],
    count: int,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    size: int = 3,
) -> list[Batch]:
    loader = MixedLoader(datasets, size, workers, seed, rank, ranks)
    return list(itertools.islice(loader, count))


def keys(found: list[Batch]) -> list[str]:
    return [key for batch in found for key in batch["keys"]]


def test_a_batch_holds_pixels_texts_and_keys(shards: list[str]) -> None:
    (batch,) = batches([mine(shards)], 1)
    assert batch["image"].shape == (3, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert to_device(batch, torch.device("cpu"))["image"].dtype == torch.float32
    assert len(batch["text"]) == len(batch["keys"]) == 3
    for key, text in zip(batch["keys"], batch["text"], strict=True):
        assert key.endswith(f"/{text}")


# From bytes to what the model sees


def noisy(folder: Path) -> DataSet:
    """A shard of pictures of many values."""
    folder.mkdir()
    samples = [{**pair(key, suffix="png"), f"{key}.png": noise()} for key in "abcdef"]
    return mine([str(write_tar(folder / "0.tar", *samples))])


def pixels_of(dataset: DataSet) -> dict[str, torch.Tensor]:
    """Text → pixels, as the processor gives them when it is called as a whole."""
    found = [raw for raw in dataset.source.read(0) if isinstance(raw, RawSample)]
    images = {raw.text: raw.image for raw in found}
    return {
        str(text): dataset.image_processor(load_image(image))
        for text, image in images.items()
        if isinstance(image, bytes)
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_pixels_are_the_processors_bit_for_bit(
    tmp_path: Path, workers: int, backend: Literal["pil", "torchvision"]
) -> None:
    processor = ImageProcessor(28, image_backend=backend)
    dataset = replace(noisy(tmp_path / "noise"), image_processor=processor)
    expected = pixels_of(dataset)
    for batch in batches([dataset], 4, workers=workers):
        assert batch["image"].dtype == torch.uint8
        ready = to_device(batch, torch.device("cpu"))
        for text, pixels in zip(ready["text"], ready["image"], strict=True):
            assert torch.equal(pixels, expected[str(text)])
        assert torch.equal(to_device(ready, torch.device("cpu"))["image"], ready["image"])


class _Negative(ImageProcessor):
    """A plug-in's, with a call of its own."""

    def __init__(self) -> None:
        super().__init__(4)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return -super().__call__(image)


@pytest.mark.parametrize("processor", [_Negative(), lambda image: -ImageProcessor(4)(image)])
def test_another_processor_is_called_as_a_whole(
    shards: list[str], processor: Callable[[Image.Image], torch.Tensor]
) -> None:
    dataset = replace(mine(shards), image_processor=processor)
    (batch,) = batches([dataset], 1, workers=0)
    assert batch["normalise"] is None
    (usual,) = batches([mine(shards)], 1)
    expected = -to_device(usual, torch.device("cpu"))["image"]
    assert torch.equal(to_device(batch, torch.device("cpu"))["image"], expected)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_reading_leaves_the_random_numbers_of_others_alone(
    tmp_path: Path, backend: Literal["pil", "torchvision"]
) -> None:
    crop = TrainImageProcessor(8, random_crop=True, image_backend=backend)
    dataset = replace(noisy(tmp_path / "noise"), image_processor=crop)

    def drawn() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = drawn()
    seed()
    first = batches([dataset], 2)
    assert drawn() == expected
    for one, again in zip(first, batches([dataset], 2), strict=True):
        assert torch.equal(one["image"], again["image"])


@pytest.mark.gpu
def test_bytes_are_pinned_and_normalised_on_a_gpu_bit_for_bit(tmp_path: Path) -> None:
    dataset = replace(noisy(tmp_path / "noise"), image_processor=ImageProcessor(28))
    expected = pixels_of(dataset)
    loader = MixedLoader([dataset], 3, 1, 0, pin_memory=True)
    for batch in itertools.islice(loader, 3):
        assert batch["image"].is_pinned()
        assert batch["image"].dtype == torch.uint8
        ready = to_device(batch, torch.device("cuda"))
        for text, pixels in zip(ready["text"], ready["image"].cpu(), strict=True):
            assert torch.equal(pixels, expected[str(text)])


def test_a_data_set_may_have_a_batch_size_of_its_own(tmp_path: Path) -> None:
    own = replace(mine(write_shards(tmp_path / "own", 1, 4), "own"), batch_size=2)
    runs = mine(write_shards(tmp_path / "runs", 1, 4), "runs")
    found = batches([own, runs], 20)
    sizes = {(name, len(b["text"])) for name, b in zip(of_data_set(found), found, strict=True)}
    assert sizes == {("own", 2), ("runs", 3)}


def test_the_stream_has_no_end_and_no_short_batch(shards: list[str]) -> None:
    found = batches([mine(shards)], 20)
    assert {len(batch["text"]) for batch in found} == {3}
    counts = Counter(keys(found))
    assert len(counts) == 20
    assert set(counts.values()) == {3}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_seed_decides_the_sequence(shards: list[str], workers: int) -> None:
    one, again, other = (
        keys(batches([mine(shards)], 8, seed=seed, workers=workers)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize("workers", [0, 2])
def test_readers_read_disjoint_shards(shards: list[str], workers: int) -> None:
    if workers:  # take turns, batch by batch
        found = batches([mine(shards)], 8, workers=2)
        shares = [found[0::2], found[1::2]]
    else:
        shares = [batches([mine(shards)], 8, rank=rank, ranks=2) for rank in (0, 1)]
    parts = [{Path(key).parent for key in keys(share)} for share in shares]
    assert [len(part) for part in parts] == [2, 2]
    assert not parts[0] & parts[1]


def test_ranks_that_share_shards_read_all_of_them_each_in_its_own_order(
    shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ranks = len(shards) + 1
    with caplog.at_level(logging.INFO):
        found = [
            keys(batches([mine(shards)], 20, rank=rank, ranks=ranks, size=1))
            for rank in range(ranks)
        ]
    assert {frozenset(own) for own in found} == {frozenset(keys(batches([mine(shards)], 20)))}
    assert len(set(map(tuple, found))) == ranks
    (record,) = caplog.records
    assert record.getMessage().startswith("datasets.mine: 4 parts for 5 readers; they share")


def test_nothing_is_said_when_there_are_enough_shards(
    shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        batches([mine(shards)], 1, rank=0, ranks=4)
    assert caplog.records == []


def of_data_set(found: list[Batch]) -> list[str]:
    """The folder of each batch; a step draws from one data set."""
    folders = [{Path(key).parent.parent.name for key in batch["keys"]} for batch in found]
    assert all(len(folder) == 1 for folder in folders)
    return [folder.pop() for folder in folders]


def test_each_step_draws_one_data_set_by_its_ratio(tmp_path: Path) -> None:
    large = mine(write_shards(tmp_path / "large", 1, 4), "large", 3.0)
    small = mine(write_shards(tmp_path / "small", 1, 4), "small", 1.0)

    def draw(seed: int = 0, rank: int = 0) -> list[str]:
        return of_data_set(batches([large, small], 120, seed, rank=rank, ranks=2, size=1))

    assert set(of_data_set(batches([large, replace(small, sample_ratio=0.0)], 30))) == {"large"}
    drawn = draw()
    assert 70 <= drawn.count("large") <= 110  # 90 expected, standard deviation 5
    assert drawn == draw()
    assert drawn != draw(seed=1)
    assert drawn != draw(rank=1)


def test_two_data_sets_of_the_same_shards_have_orders_of_their_own(shards: list[str]) -> None:
    one = keys(batches([mine(shards, "one")], 6))
    two = keys(batches([mine(shards, "two")], 6))
    assert one != two


def test_ratios_that_are_all_0_are_refused(shards: list[str]) -> None:
    with one_line(DataError, "sample_ratio"):
        MixedLoader([mine(shards, ratio=0.0), mine(shards, ratio=0.0)], 3, 0, 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_data_set_without_a_good_sample_is_one_line_and_no_endless_loop(
    tmp_path: Path, workers: int
) -> None:
    broken = {"bad.jpg": b"no picture", "bad.json": b'{"caption": "x"}'}
    shards = [str(write_tar(tmp_path / f"{n}.tar", broken, broken | {})) for n in range(2)]
    with one_line(DataError, "datasets.mine: no readable sample"):
        batches([mine(shards)], 1, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_good_shard_is_enough_whoever_has_the_broken_one(tmp_path: Path, workers: int) -> None:
    (bad,) = write_shards(tmp_path / "bad", 1, 1)
    Path(bad).write_bytes(b"not a tar" * 100)
    (good,) = write_shards(tmp_path / "good", 1, 4)
    found = keys(batches([mine([bad, good])], 6, workers=workers))
    assert {Path(key).parent for key in found} == {Path(good)}
    assert len(found) == 18


def test_after_that_error_no_worker_is_left(tmp_path: Path) -> None:
    gc.collect()  # of earlier tests
    broken = {"bad.jpg": b"no picture", "bad.json": b'{"caption": "x"}'}
    shards = [str(write_tar(tmp_path / "0.tar", broken))]
    # A reference cycle through the raised error would keep the workers until the next collection,
    # which then waits five seconds for each of them.
    gc.disable()
    try:
        with contextlib.suppress(DataError):
            batches([mine(shards)], 1, workers=1)
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


# A sequence that was cut goes on as if it had not been


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
