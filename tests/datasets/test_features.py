"""Features on disk: what is read is what was written, and damage is one bad sample."""

import pickle
from pathlib import Path

import pytest
import torch

from minigpt4.datasets.caption_shards import ShardSource
from minigpt4.datasets.feature_source import FeatureSource, Group, load_index, row_of, save_json
from minigpt4.datasets.features import CachedFeatures, save_features
from minigpt4.datasets.samples import BadSample, RawSample, read_sample, stack, to_device
from minigpt4.errors import DataError
from tests.helpers.data_files import data_set, pair, write_tar
from tests.helpers.messages import one_line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_features(torch.arange(24.0).reshape(3, 4, 2), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_is_read_in_the_dtype_it_was_written_in(tmp_path: Path, dtype: torch.dtype) -> None:
    written = torch.randn(5, 4, 2).to(dtype)
    save_features(written, tmp_path / "a.safetensors")
    for row in range(5):
        features = pickle.loads(pickle.dumps(CachedFeatures(tmp_path / "a.safetensors", row)))
        found = features.load()
        assert found.dtype == dtype
        assert torch.equal(found, written[row])


def test_damage_is_one_line(file: Path, tmp_path: Path) -> None:
    with one_line(DataError, "a.safetensors", "row 3"):
        CachedFeatures(file, 3).load()
    with one_line(DataError, "nowhere.safetensors", "No such file"):
        CachedFeatures(tmp_path / "nowhere.safetensors", 0).load()
    for name, size in (("cut", 100), ("beheaded", 5), ("empty", 0)):
        damaged = tmp_path / f"{name}.safetensors"
        damaged.write_bytes(file.read_bytes()[:size])
        with one_line(DataError, damaged):
            CachedFeatures(damaged, 0).load()


def test_features_go_past_the_image_processor(file: Path) -> None:
    dataset = data_set(ShardSource([], 1))
    raws = [RawSample(f"s/{row}", CachedFeatures(file, row), "a text", "s") for row in range(4)]
    samples = [read_sample(raw, dataset, "") for raw in raws]
    bad = samples.pop()
    assert isinstance(bad, BadSample)
    assert (bad.key, bad.cause, bad.shard) == ("s/3", "unreadable features", "s")
    good = [sample for sample in samples if not isinstance(sample, BadSample)]
    batch = to_device(stack(good, dataset), torch.device("cpu"))
    assert torch.equal(batch["image"], torch.arange(24.0).reshape(3, 4, 2))
    empty = read_sample(RawSample("s/0", CachedFeatures(file, 0), " "), dataset, "")
    assert isinstance(empty, BadSample)
    assert empty.cause == "empty caption"


def test_keys_follow_the_shards_when_these_move(file: Path, tmp_path: Path) -> None:
    """A cache names no path of its shards."""
    shard = str(write_tar(tmp_path / "0.tar", pair("a")))
    before: list[RawSample | BadSample] = [
        RawSample("/old/0.tar/x", b"", "a text", "/old/0.tar"),
        BadSample("/old/0.tar/y", "no json", "", "/old/0.tar"),
        BadSample("/old/0.tar", "broken shard", "the rest of it is lost", "/old/0.tar"),
    ]
    rows = [row_of(sample) for sample in before]
    assert "/old" not in str(rows)
    rows[0]["features"] = [(file.name, 2)]
    save_json(Group({}, [], [3], rows, {}), tmp_path / "00000.json")
    (tmp_path / "features.json").write_text('{"identity": {}, "groups": [{}]}')
    found = list(FeatureSource(ShardSource([shard], 7), tmp_path).read(0))
    assert found == [
        RawSample(f"{shard}/x", CachedFeatures(file, 2), "a text", shard),
        BadSample(f"{shard}/y", "no json", "", shard),
        BadSample(shard, "broken shard", "the rest of it is lost", shard),
    ]
    (tmp_path / "00000.json").write_text('{"identity"')
    (bad,) = FeatureSource(ShardSource([shard], 7), tmp_path).read(0)
    assert isinstance(bad, BadSample)
    assert bad.cause == "unreadable features"
    assert "run the same cache-features command again" in bad.detail


def test_what_is_no_complete_cache_is_told(tmp_path: Path) -> None:
    with one_line(DataError, tmp_path, "not a feature cache, or not complete"):
        load_index(tmp_path, 3)
    (tmp_path / "00001.json").touch()
    with one_line(DataError, tmp_path, "2 of 3 groups are missing", "same cache-features command"):
        load_index(tmp_path, 3)
    for content in ("", "[]", '{"identity": 3}', '"x"'):
        (tmp_path / "features.json").write_text(content)
        with one_line(DataError, "features.json: damaged"):
            load_index(tmp_path, 3)
