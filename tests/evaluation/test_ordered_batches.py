"""Reading in order: every sample once, the same batches for any number of readers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from minigpt4.datasets.caption_shards import ShardSource
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.samples import DataSet
from minigpt4.evaluation.ordered_batches import OrderedBatch, OrderedBatches
from minigpt4.processors import ImageProcessor, TrainImageProcessor
from minigpt4.registry import BUILDERS
from tests.helpers.data_files import (
    data_set,
    noise,
    pair,
    picture,
    write_pairs,
    write_shards,
    write_tar,
)


@pytest.fixture
def shards(tmp_path: Path) -> DataSet:
    return data_set(ShardSource(write_shards(tmp_path / "shards", 3, 4), window=5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six annotated pairs: 1 is no picture, 3 is not there, 4 has no text."""
    entries = [(str(i), 4 if i == 4 else f"text {i}") for i in range(6)]
    images = {f"{i}.jpg": b"noise" if i == 1 else picture() for i in (0, 1, 2, 4, 5)}
    return write_pairs(tmp_path / "pairs", entries, images)


def read(
    dataset: DataSet, size: int = 5, workers: int = 0, rank: int = 0, ranks: int = 1
) -> list[OrderedBatch]:
    batches = OrderedBatches(dataset, size, rank, ranks)
    return list(DataLoader(batches, batch_size=None, num_workers=workers))


def texts(batches: list[OrderedBatch]) -> list[str]:
    return [str(text) for found in batches if found.batch for text in found.batch["text"]]


def test_shards_are_read_once_in_their_order_with_a_short_last_batch(shards: DataSet) -> None:
    found = read(shards)
    assert texts(found) == [f"{shard}-{sample}" for shard in range(3) for sample in range(4)]
    assert [batch.numbers for batch in found] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert found[2].batch is not None
    assert found[2].batch["image"].shape == (2, 3, 4, 4)
    assert found[0].batch is not None
    assert found[0].batch["keys"][4].endswith("00001.tar/1-0")
    assert texts(read(shards)) == texts(found), "a second reading is the same"


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_readers_share_the_same_batches_in_turn(shards: DataSet, ranks: int, workers: int) -> None:
    alone = [batch.numbers for batch in read(shards, size=2)]
    shares = [read(shards, 2, workers, rank, ranks) for rank in range(ranks)]
    for rank, share in enumerate(shares):
        assert [batch.numbers for batch in share] == alone[rank::ranks]


def test_what_cannot_be_read_keeps_its_place(folder: Path) -> None:
    (found,) = read(data_set(AlignmentSource(folder)), size=10)
    assert found.numbers == [0, 2, 5]
    assert texts([found]) == ["text 0", "text 2", "text 5"]
    assert found.batch is not None
    assert found.batch["keys"] == [str(folder / "image" / f"{i}.jpg") for i in (0, 2, 5)]
    assert set(found.unreadable) == {1, 3, 4}
    assert found.unreadable[1].key == str(folder / "image" / "1.jpg")
    assert "not a readable picture" in found.unreadable[1].reason
    assert "no image" in found.unreadable[3].reason
    assert "4 is not a text" in found.unreadable[4].reason


def test_a_batch_without_a_readable_sample_is_no_batch(folder: Path) -> None:
    found = read(data_set(AlignmentSource(folder)), size=1)
    assert [batch.batch is None for batch in found] == [False, True, False, True, True, False]
    assert [batch.numbers for batch in found] == [[0], [], [2], [], [], [5]]


def test_the_image_processor_of_an_evaluation_is_the_one_named_for_it(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [("a", "a text")], {"a.jpg": picture()})

    def size_of(**splits: int) -> int:
        options = {
            "build_info": {"storage": str(folder)},
            "vis_processor": {
                split: {"name": "blip2_image_eval", "image_size": size}
                for split, size in splits.items()
            },
        }
        (found,) = read(BUILDERS.build("cc_sbu_align", options, name="cc_sbu_align"))
        assert found.batch is not None
        return found.batch["image"].shape[-1]

    assert size_of(train=4) == 4
    assert size_of(train=4, test=6) == 6
    assert size_of(train=4, val=5, test=6) == 5
    assert size_of(train=4, val=5, eval=7, test=6) == 7


def test_a_random_crop_is_the_same_for_any_number_of_readers(tmp_path: Path) -> None:
    entries = [(str(i), "noise") for i in range(4)]
    folder = write_pairs(tmp_path / "pairs", entries, {f"{i}.png": noise() for i in range(4)})
    crops = TrainImageProcessor(8, random_crop=True)
    assert crops.random
    assert not TrainImageProcessor(8).random
    assert not ImageProcessor(8).random
    dataset = replace(data_set(AlignmentSource(folder)), image_processor=crops)
    (whole,) = read(dataset, size=4)
    singles = read(dataset, size=1, workers=2)
    assert whole.batch is not None
    for image, single in zip(whole.batch["image"], singles, strict=True):
        assert single.batch is not None
        assert torch.equal(image, single.batch["image"][0])
    assert not torch.equal(whole.batch["image"][0], whole.batch["image"][1])


def test_the_rest_of_a_broken_shard_takes_one_place(tmp_path: Path) -> None:
    cut = write_tar(tmp_path / "0.tar", *(pair(f"early{i}") for i in range(3)), pair("late"))
    whole = write_tar(tmp_path / "1.tar", pair("other"))
    cut.write_bytes(cut.read_bytes()[: -10240 - 3000])
    (found,) = read(data_set(ShardSource([str(cut), str(whole)], 5)), size=10)
    assert texts([found]) == ["early0", "early1", "early2", "other"]
    lost = [bad for bad in found.unreadable.values() if bad.cause == "broken shard"]
    assert [bad.key for bad in lost] == [str(cut)]
