import json
import logging
from pathlib import Path

import pytest
import torch

from minigpt4.datasets.caption_shards import ShardSource, check_shards, list_shards
from minigpt4.datasets.loaders import SampleStream
from minigpt4.errors import DataError
from minigpt4.registry import BUILDERS
from tests.helpers.data_files import (
    data_set,
    noise,
    pair,
    picture,
    samples_of,
    write_shards,
    write_tar,
)
from tests.helpers.messages import one_line


def stream(*shards: object, window: int = 100, seed: int = 0) -> SampleStream:
    source = ShardSource([str(shard) for shard in shards], window)
    return SampleStream(data_set(source), 1, seed, 0, 1)


def texts(reader: SampleStream, count: int) -> list[str]:
    return [str(sample["text"]) for sample in samples_of(reader, count)]


# Which shards


def test_braces_folders_globs_and_lists_name_shards(tmp_path: Path) -> None:
    a, b, c = write_shards(tmp_path / "a", 3, 1)
    (d,) = write_shards(tmp_path / "b", 1, 1)
    (tmp_path / "a" / "00000_stats.json").write_text("{}")
    assert list_shards(f"{tmp_path}/a/{{00000..00002}}.tar") == [a, b, c]
    assert list_shards(f"{tmp_path}/a/{{00000,00002}}.tar") == [a, c]
    assert list_shards(f"{tmp_path}/a") == [a, b, c]
    assert list_shards(f"{tmp_path}/a/*.tar") == [a, b, c]
    assert list_shards([f"{tmp_path}/a", f"{tmp_path}/b"]) == [a, b, c, d]
    assert list_shards([f"{tmp_path}/{{a,b}}"]) == [a, b, c, d]
    assert list_shards(a) == [a]


def test_the_originals_storage_names_all_its_shards() -> None:
    assert len(list_shards("/path/to/cc_sbu_dataset/{00000..01255}.tar")) == 1256
    assert len(list_shards("/path/to/laion_dataset/{00000..10488}.tar")) == 10489


@pytest.mark.parametrize(
    ("storage", "complaint"),
    [
        ("/path/to/laion_dataset/{00000..10488}.tar", "is a placeholder"),
        (["/path/to/a.tar", "b.tar"], "is a placeholder"),
        ("/nowhere/{0..9}.tar", "none of the 10 shards exists; the first is /nowhere/0.tar"),
        ("/nowhere/{0..9.tar", "has unbalanced braces"),
        ("/nowhere/*.tar", "names no shard"),
        ([], "names no shard"),
        ("empty", "names no shard"),
    ],
)
def test_a_storage_without_shards_is_complained_about(
    tmp_path: Path, storage: str | list[str], complaint: str
) -> None:
    text = check_shards(storage if storage != "empty" else str(tmp_path))
    assert text is not None
    assert complaint in text
    assert "\n" not in text


def test_one_shard_that_exists_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path, 1, 2)
    storage = f"{tmp_path}/{{00000..00004}}.tar"
    assert check_shards(storage) is None
    with caplog.at_level(logging.WARNING):
        built = BUILDERS.build("cc_sbu", {"build_info": {"storage": storage}}, name="cc_sbu")
    assert len(texts(SampleStream(built, 1, 0, 0, 1), 4)) == 4
    assert [bad.cause for bad in built.missing] == ["missing shard"] * 4
    (record,) = caplog.records
    assert "datasets.cc_sbu: 4 of 5 shards are missing" in record.getMessage()


# What is in them


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp"])
def test_every_kind_of_picture_is_read(tmp_path: Path, suffix: str) -> None:
    shard = write_tar(tmp_path / "0.tar", pair("a", "a red square", suffix))
    (sample,) = samples_of(stream(shard), 1)
    assert sample["text"] == "a red square"
    assert sample["key"].endswith("0.tar/a")
    assert sample["image"].shape == (3, 4, 4)
    assert sample["image"][0].mean() > sample["image"][1].mean()


def test_a_jpeg_whose_suffix_is_written_large_is_read(tmp_path: Path) -> None:
    files = {"a.JPG": picture(), "a.JSON": b'{"caption": "large"}'}
    assert texts(stream(write_tar(tmp_path / "0.tar", files)), 1) == ["large"]


def test_what_img2dataset_writes_beside_the_pair_is_left_alone(tmp_path: Path) -> None:
    files = {"000000001.jpg": picture(), "000000001.txt": b"another text", **pair("000000002")}
    files["000000001.json"] = json.dumps(
        {"url": "http://x/y", "caption": "the caption", "status": "success", "sha256": "0"}
    ).encode()
    ordered = dict(sorted(files.items()))
    read = texts(stream(write_tar(tmp_path / "0.tar", ordered)), 2)
    assert sorted(read) == ["000000002", "the caption"]


BROKEN = {
    "not a picture": {"bad.jpg": b"not a picture", "bad.json": b'{"caption": "x"}'},
    "half a picture": {"bad.png": noise()[:900], "bad.json": b'{"caption": "x"}'},
    "empty picture": {"bad.webp": b"", "bad.json": b'{"caption": "x"}'},
    "no json": {"bad.jpg": picture()},
    "no picture": {"bad.json": b'{"caption": "x"}'},
    "no caption": {"bad.jpg": picture(), "bad.json": b'{"text": "x"}'},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_sample_is_skipped_with_a_line_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    shard = write_tar(tmp_path / "0.tar", pair("good1"), BROKEN[kind], pair("good2"))
    with caplog.at_level(logging.WARNING):
        # The third good sample is of the second pass: by then the whole shard was read once.
        read = texts(stream(shard), 3)
    assert sorted(read[:2]) == ["good1", "good2"]
    line = caplog.records[0].getMessage()
    assert line.startswith(f"mine: skipped {shard}/bad: ")
    assert "\n" not in line


@pytest.mark.parametrize("content", [None, b"", b"this is not a tar" * 100, bytes(5000)])
def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    bad = tmp_path / "0.tar"
    if content is not None:  # else it vanished while training
        bad.write_bytes(content)
    good = write_tar(tmp_path / "1.tar", pair("good"))
    with caplog.at_level(logging.WARNING):
        assert set(texts(stream(bad, good), 3)) == {"good"}
    assert any(str(bad) in record.getMessage() for record in caplog.records)


def test_many_broken_samples_do_not_flood_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [{f"bad{i}.jpg": b"x", f"bad{i}.json": b'{"caption": "x"}'} for i in range(40)]
    shard = write_tar(tmp_path / "0.tar", pair("good"), *broken)
    source = data_set(ShardSource([str(shard)], 10))
    with caplog.at_level(logging.WARNING):
        samples_of(SampleStream(source, 1, 0, 0, 1, max_bad_fraction=0.99), 3)
    assert 1 <= len(caplog.records) <= 10


@pytest.mark.parametrize(
    ("bad", "limit", "ends"), [(60, 0.5, True), (40, 0.5, False), (60, 0.7, False)]
)
def test_too_large_a_share_of_bad_samples_ends_the_stream(
    tmp_path: Path, bad: int, limit: float, ends: bool
) -> None:
    broken = [{f"bad{i}.jpg": b"x", f"bad{i}.json": b'{"caption": "x"}'} for i in range(bad)]
    good = [pair(f"good{i}") for i in range(100 - bad)]
    shard = write_tar(tmp_path / "0.tar", *broken, *good)
    source = data_set(ShardSource([str(shard)], 10))
    reader = SampleStream(source, 1, 0, 0, 1, max_bad_fraction=limit)
    if not ends:
        assert len(samples_of(reader, 300)) == 300
        return
    with one_line(DataError, "60% of the last 100 samples", "unreadable image 60", "bad"):
        samples_of(reader, 300)


def test_among_many_samples_the_last_thousand_count(tmp_path: Path) -> None:
    good = [pair(f"good{i:04}") for i in range(1500)]
    broken = [{f"bad{i:04}.json": b'{"caption": "x"}'} for i in range(3000)]
    shard = write_tar(tmp_path / "0.tar", *good, *broken)
    with one_line(DataError, "of the last 1,000 samples are bad", "no image 501"):
        samples_of(stream(shard, window=1), 1501)


# In which order


def test_every_sample_comes_once_a_pass(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 3, 5)
    keys = [f"{shard}-{sample}" for shard in range(3) for sample in range(5)]
    read = texts(stream(*shards, window=4), 30)
    assert sorted(read[:15]) == keys
    assert sorted(read[15:]) == keys
    assert read[:15] != read[15:]


def test_a_random_crop_follows_the_seed_and_not_the_global_one(tmp_path: Path) -> None:
    files = {"a.png": noise(), "a.json": b'{"caption": "noise"}'}
    storage = {"storage": str(write_tar(tmp_path / "0.tar", files))}
    crop = {"train": {"name": "blip2_image_train", "image_size": 8, "random_crop": True}}
    built = BUILDERS.build("laion", {"build_info": storage, "vis_processor": crop}, name="laion")

    def crops(seed: int, global_seed: int) -> list[torch.Tensor]:
        torch.manual_seed(global_seed)
        return [sample["image"] for sample in samples_of(SampleStream(built, 1, seed, 0, 1), 3)]

    one, again, other = crops(1, 5), crops(1, 6), crops(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("text", [{}, {"text_processor": {"train": {"name": "blip_caption"}}}])
def test_captions_of_a_shard_data_set_are_processed(
    tmp_path: Path, text: dict[str, object]
) -> None:
    storage = {"storage": str(write_tar(tmp_path / "0.tar", pair("a", "A Red; Square.")))}
    image = {"train": {"name": "blip2_image_eval", "image_size": 4}}
    options = {"build_info": storage, "vis_processor": image, **text}
    built = BUILDERS.build("laion", options, name="laion")
    assert texts(SampleStream(built, 1, 0, 0, 1), 1) == ["a red square"]
