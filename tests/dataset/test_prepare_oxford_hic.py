"""Oxford-HIC prepared from real csv files and pictures, through to the humour model's answer."""

import csv
import fcntl
import functools
import io
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train
from dataset import oxford_hic_tables, prepare_oxford_hic
from minigpt4.chat import load_chat
from minigpt4.datasets import images
from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.samples import RawSample
from tests.helpers.data_files import noise, picture
from tests.helpers.pages import commands_of
from tests.helpers.processes import finished
from tests.helpers.repo import ROOT, EntryPoint

SCRIPT = "dataset/prepare_oxford_hic.py"
ALL_TRAIN = ("--val-fraction", "0", "--test-fraction", "0")
Rows = Iterable[Sequence[object]]


class Source:
    """The two csv files and the pictures, in a folder."""

    def __init__(self, folder: Path, images: Mapping[str, bytes] | None = None) -> None:
        self.folder, self.output = folder, folder / "out"
        self.info, self.data = folder / "info.csv", folder / "data.csv"
        self.images = folder / "images"
        self.images.mkdir()
        for name, content in (images or {}).items():
            (self.images / name).write_bytes(content)

    def write(self, ids: Iterable[str], rows: Rows) -> "Source":
        self.info.write_bytes(as_csv("image_id,image_url", [(i, f"http://x/{i}.jpg") for i in ids]))
        self.data.write_bytes(as_csv("image_id,caption,funny_score", rows))
        return self

    def arguments(self, *more: object, output: Path | None = None) -> list[str]:
        named = {"info": self.info, "data": self.data, "images": self.images}
        named["output"] = output or self.output
        return [f"--{name}={path}" for name, path in named.items()] + [str(word) for word in more]

    def prepare(self, *more: object, output: Path | None = None) -> Path:
        """Run it in this process, where it must succeed."""
        assert prepare_oxford_hic.main(self.arguments(*more, output=output)) == 0
        return output or self.output

    def started(self, *more: object, **how: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / SCRIPT), *self.arguments(*more)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
        )


def as_csv(header: str, rows: Rows) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return f"{header}\r\n{text.getvalue()}".encode()


def many(folder: Path, count: int = 60, each: int = 8) -> tuple[Source, list[Sequence[object]]]:
    """Images with several captions each; what ``write`` takes."""
    ids = [f"{number:04d}" for number in range(count)]
    source = Source(folder, {f"{image_id}.jpg": picture() for image_id in ids})
    rows: list[Sequence[object]] = [
        (image_id, f"caption {n} of {image_id}", n % 3) for image_id in ids for n in range(each)
    ]
    source.write(ids, rows)
    return source, rows


def pairs(folder: Path) -> list[tuple[str, str]]:
    annotations = json.loads((folder / "filter_cap.json").read_text(encoding="utf-8"))
    return [(entry["image_id"], entry["caption"]) for entry in annotations["annotations"]]


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def left_out(output: Path, part: str = "data") -> dict[str, int]:
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    found = {reason: told["rows"] for reason, told in summary[part]["left_out"].items()}
    if part == "data":
        kept = sum(split["captions"] for split in summary["splits"].values())
        assert sum(found.values()) + kept == summary["data"]["rows"], "every row is told about"
    return found


def test_every_quirk_of_the_files_is_met_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ["0012", "12", "zero", "bare", "broken"]
    source = Source(tmp_path, {f"{i}.jpg": picture() for i in ("0012", "12", "zero", "unlisted")})
    (source.images / "broken.jpg").write_text("<html>not found</html>")
    source.write(
        [*ids, "12", "nan", ""],
        [
            ("0012", 'He said: "why, not?"', "1,234"),
            ("0012", "two\nlines – and ünïcode", "7.5"),
            ("12", "another image", "1,234,567"),
            (" 12 ", " spaces around ", " 3 "),
            ("12", "another image", "2"),
            ("zero", "nobody laughed", "0"),
            ("", "no image", "3"),
            ("NaN", "no image", "3"),
            ("12", "nan", "3"),
            ("12", "  ", "3"),
            ("12", "no score", "NaN"),
            ("12", "no score", ""),
            ("12", "no number", "1,2,3"),
            ("12", "no number", "12 votes"),
            ("12", "no number", "inf"),
            ("../x", "outside", "3"),
            ("/etc/x", "outside", "3"),
            ("..", "outside", "3"),
            ("bare", "no picture", "3"),
            ("broken", "no picture", "3"),
            ("unlisted", "of no listed image", "3"),
            ("12", "one", "column", "too many"),
        ],
    )
    source.prepare(*ALL_TRAIN)
    assert sorted(pairs(source.output / "train")) == [
        ("0012", 'He said: "why, not?"'),
        ("0012", "two\nlines – and ünïcode"),
        ("12", "another image"),
        ("12", "spaces around"),
        ("zero", "nobody laughed"),
    ]
    assert left_out(source.output) == {
        "funny_score is no number": 3,
        "image_id is no file name, refused": 3,
        "no image_id": 2,
        "no caption": 2,
        "no funny_score": 2,
        "same caption of the same image": 1,
        "no picture in --images": 1,
        "unreadable picture": 1,
        "image not in --info": 1,
        "unreadable row": 1,
    }
    assert left_out(source.output, "info") == {"no image_id": 2, "image_id twice": 1}
    summary = json.loads((source.output / "summary.json").read_text())
    assert summary["images_of_score_0_throughout"] == 1
    assert summary["rows_by_score"] == {
        "0": 1,
        "1 to below 10": 6,
        "1,000 to below 10,000": 1,
        "1,000,000 to below 10,000,000": 1,
    }
    printed = capsys.readouterr().out
    assert f"{source.data}:24: has 4 columns, the header 3" in printed
    assert f"{source.data}:18: '../x'" in printed
    assert not (source.output / "val").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.csv", "images", "info.csv", "out"]


def test_neither_order_nor_other_rows_move_an_image(tmp_path: Path) -> None:
    source, rows = many(tmp_path, 200, 3)
    fractions = ("--val-fraction", "0.2", "--test-fraction", "0.1")
    first = source.prepare(*fractions)
    ids = {split: {i for i, _ in pairs(first / split)} for split in ("train", "val", "test")}
    assert sum(map(len, ids.values())) == 200, "no image on two sides"
    assert 120 <= len(ids["train"]) <= 160
    assert len(ids["val"]) > len(ids["test"]) > 5

    random.Random(1).shuffle(rows)
    source.write(sorted({str(row[0]) for row in rows}, reverse=True), rows)
    shuffled = everything(source.prepare(*fractions, output=tmp_path / "shuffled"))
    unmoved = everything(first)
    for files in (shuffled, unmoved):
        del files["summary.json"]  # has line numbers
    assert shuffled == unmoved

    some = sorted({str(row[0]) for row in rows})[::3]
    source.write(some, [row for row in rows if row[0] in some])
    few = source.prepare(*fractions, output=tmp_path / "few")
    assert all({i for i, _ in pairs(few / split)} <= ids[split] for split in ids)

    other = source.prepare(*fractions, "--seed", 1, output=tmp_path / "other")
    assert {i for i, _ in pairs(other / "train")} != {i for i, _ in pairs(few / "train")}


def test_the_funniest_captions_are_kept_and_ties_always_fall_alike(tmp_path: Path) -> None:
    source = Source(tmp_path, {"a.jpg": picture()})
    rows: list[tuple[str, str, object]] = [("a", f"equal {letter}", 5) for letter in "ABCDEFGH"]
    rows += [("a", "best", "1,000"), ("a", "second", 999), ("a", "worst", 1)]
    source.write(["a"], rows)
    cap = (*ALL_TRAIN, "--max-captions-per-image", 5)
    kept = pairs(source.prepare(*cap) / "train")
    assert [caption for _, caption in kept[:2]] == ["best", "second"]
    assert {caption[:5] for _, caption in kept[2:]} == {"equal"}
    assert left_out(source.output) == {"over --max-captions-per-image": 6}
    source.write(["a"], reversed(rows))
    assert pairs(source.prepare(*cap, output=tmp_path / "two") / "train") == kept


def test_less_funny_captions_are_left_out(tmp_path: Path) -> None:
    source, _ = many(tmp_path, 4, 6)
    source.prepare(*ALL_TRAIN, "--min-score", 2)
    assert left_out(source.output) == {"funny_score below --min-score": 16}
    assert len(pairs(source.output / "train")) == 8


def test_pictures_by_any_suffix_and_whatever_they_are(tmp_path: Path) -> None:
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    files = {
        "jpg.jpg": gif.getvalue(),
        "png.png": picture("png"),
        "webp.WEBP": picture("webp"),
        "jpeg.jpeg": picture(),
        "dots.in.it.jpg": picture(),
        "both.png": picture("png"),
        "both.jpg": picture(),
        "empty.jpg": b"",
        "cut.png": noise()[:900],
        "text.txt": b"x",
    }
    source = Source(tmp_path, files)
    (source.images / "linked.jpg").symlink_to("jpeg.jpeg")
    (source.images / "dangling.jpg").symlink_to("nowhere.jpg")
    ids = [*dict.fromkeys(Path(name).stem for name in files), "linked", "dangling"]
    source.write(ids, [(image_id, f"of {image_id}", 1) for image_id in ids])
    source.prepare(*ALL_TRAIN)
    assert left_out(source.output) == {"no picture in --images": 2, "unreadable picture": 1}
    folder = source.output / "train"
    assert {file.name: file.read_bytes() for file in (folder / "image").iterdir()} == {
        **{name.lower(): files[name] for name in list(files)[:5]},
        "both.jpg": files["both.jpg"],
        "cut.png": files["cut.png"],
        "linked.jpg": files["jpeg.jpeg"],
    }
    assert not any(file.is_symlink() for file in (folder / "image").iterdir())
    assert AlignmentSource(folder).length == 8
    decoded = source.prepare(*ALL_TRAIN, "--decode", output=tmp_path / "decoded")
    assert left_out(decoded)["unreadable picture"] == 2


def test_formats_are_those_that_a_training_opens() -> None:
    assert prepare_oxford_hic.FORMATS == images._FORMATS


def test_a_bomb_is_unreadable_to_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    source = Source(tmp_path, {"a.jpg": picture(), "b.png": noise()})
    source.write(["a", "b"], [("a", "12 x 9 pixels", 1)])
    with pytest.raises(Exception, match=r"no row is left \(unreadable picture: 1"):
        source.prepare()


def test_pictures_as_img2dataset_leaves_them_are_found_by_their_address(tmp_path: Path) -> None:
    source = Source(tmp_path, {"0001.jpg": picture("png")})
    for key, url in (("000000000", "http://x/0001.jpg"), ("000000001", "http://x/0002.jpg")):
        below = source.images / "00000"
        below.mkdir(exist_ok=True)
        (below / f"{key}.jpg").write_bytes(picture())
        (below / f"{key}.json").write_text(json.dumps({"url": url, "image_id": 1, "key": key}))
    (below / "000000002.jpg").write_bytes(picture())  # whose json was never written
    (source.images / "00000.parquet").write_bytes(b"x")
    source.write(["0001", "0002", "0003"], [(f"000{n}", f"of {n}", 1) for n in (1, 2, 3)])
    source.prepare(*ALL_TRAIN)
    assert left_out(source.output) == {"no picture in --images": 1}
    found = {file.name: file.read_bytes() for file in (source.output / "train" / "image").iterdir()}
    assert found == {"0001.jpg": picture("png"), "0002.jpg": picture()}


def test_shards_hold_every_pair_once_and_those_of_an_image_apart(tmp_path: Path) -> None:
    source, rows = many(tmp_path, 30, 10)
    source.prepare("--samples-per-shard", 25)
    texts: list[str] = []
    for split in ("train", "val", "test"):
        shards = list_shards(str(source.output / split))
        for number, shard in enumerate(shards):
            samples = list(ShardSource(shards, window=1).read(number))
            assert 1 <= len(samples) <= 25
            assert len(samples) == 25 or number == len(shards) - 1
            for sample in samples:
                assert isinstance(sample, RawSample)
                assert sample.image == picture()
                texts.append(str(sample.text))
            with tarfile.open(shard) as tar:
                member = tar.extractfile(tar.getnames()[1])
                assert member is not None
                told = json.loads(member.read())
            assert told["caption"].endswith(told["image_id"])
    assert sorted(texts) == sorted(str(row[1]) for row in rows)
    neighbours = [a[-4:] == b[-4:] for a, b in itertools.pairwise(texts)]
    assert sum(neighbours) < 50, "of 300, 270 if they lay as they came"
    again = source.prepare("--samples-per-shard", 25, output=tmp_path / "again")
    assert everything(again) == everything(source.output)


def test_the_reader_takes_several_captions_of_an_image(tmp_path: Path) -> None:
    source, _ = many(tmp_path, 3, 4)
    reader = AlignmentSource(source.prepare(*ALL_TRAIN) / "train")
    samples = [sample for unit in range(reader.units) for sample in reader.read(unit)]
    assert all(isinstance(sample, RawSample) for sample in samples)
    counts = Counter(sample.image for sample in samples if isinstance(sample, RawSample))
    assert sorted(counts.values()) == [4, 4, 4]
    assert os.stat(str(next(iter(counts)))).st_nlink == 2, "linked, not copied"


def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across_disks(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across_disks)
    source, _ = many(tmp_path, 3, 1)
    source.prepare(*ALL_TRAIN)
    copies = list((source.output / "train" / "image").iterdir())
    assert [file.read_bytes() for file in copies] == 3 * [picture()]
    assert {file.stat().st_nlink for file in copies} == {1}


HEADER = b"image_id,caption,funny_score\n"
WRONG: dict[str, tuple[bytes, str]] = {
    "semicolons": (b"image_id;caption;funny_score\na;b;3\n", ":1: .*semicolons, not commas"),
    "tabs": (b"image_id\tcaption\tfunny_score\na\tb\t3\n", ":1: .*tabs, not commas"),
    "columns": (b"image_id,text\na,b\n", r":1: has no column caption, funny_score; .*'image_id, t"),
    "empty": (b"", ":1: is empty"),
    "no rows": (HEADER, ":1: no rows follow"),
    "utf-16": ((HEADER + b"a,b,3\n").decode().encode("utf-16"), ":1: is UTF-16"),
    "faults alone": (HEADER + b"a,b\na,b,c,d\n", r"data.csv: no row is left \(unreadable row: 2"),
    "no images": (HEADER + b"x,b,3\n", r"no row is left \(image not in --info: 1; .* 1 pictures"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_wrong_as_a_whole_is_one_line(
    tmp_path: Path, run_entry: EntryPoint, what: str
) -> None:
    source = Source(tmp_path, {"a.jpg": picture()}).write(["a"], [])
    content, said = WRONG[what]
    source.data.write_bytes(content)
    before = everything(tmp_path)
    line = run_entry.refused(prepare_oxford_hic.main, *source.arguments())
    assert re.search(said, line), line
    assert str(source.data) in line
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--images=nowhere"], "--images nowhere: no such folder"),
        (["--info=nowhere.csv"], "nowhere.csv: no such file"),
        (["--data=data.json"], "data.json: must be a .csv"),
        (["--max-captions-per-image=0"], "--max-captions-per-image: 0 must be at least 1"),
        (["--samples-per-shard=-1"], "--samples-per-shard: -1 must be at least 1"),
        (["--val-fraction=nan"], "--val-fraction and --test-fraction must not be"),
        (["--val-fraction=0.5", "--test-fraction=0.5"], "must not be negative or reach 1"),
        (["--min-score=nan"], "--min-score: nan is no score"),
        (["--val-fraction=0.94999"], "make them smaller"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(
    tmp_path: Path, run_entry: EntryPoint, given: list[str], said: str
) -> None:
    source, _ = many(tmp_path, 2, 1)
    assert said in run_entry.refused(prepare_oxford_hic.main, *source.arguments(*given))
    assert not source.output.exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, run_entry: EntryPoint) -> None:
    source, _ = many(tmp_path, 2, 1)
    source.output.mkdir()
    (source.output / "mine").write_text("kept")
    error = run_entry.refused(prepare_oxford_hic.main, *source.arguments())
    assert f"{source.output}: exists already" in error
    assert everything(source.output) == {"mine": b"kept"}
    (source.output / "mine").unlink()
    source.prepare()  # an empty folder has nothing to lose


def test_two_at_a_time_do_not_meet(tmp_path: Path, run_entry: EntryPoint) -> None:
    source, _ = many(tmp_path, 2, 1)
    work = tmp_path / ".out.writing"
    work.mkdir()
    (work / "rows.sqlite").write_text("of the other one")
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    error = run_entry.refused(prepare_oxford_hic.main, *source.arguments())
    assert "another process is writing there" in error
    assert (work / "rows.sqlite").read_text() == "of the other one"
    os.close(handle)
    source.prepare()
    assert not work.exists()


def test_killed_anywhere_it_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    source, _ = many(tmp_path, 400, 10)
    whole = everything(source.prepare(output=tmp_path / "whole"))
    work = tmp_path / ".out.writing"
    image = work / "train" / "image"
    kills = 0
    for reached in (work / "rows.sqlite", image, next((tmp_path / "whole/val/image").iterdir())):
        at = work / reached.relative_to(tmp_path / "whole") if "whole" in reached.parts else reached
        job = source.started()
        while job.poll() is None and not at.exists():
            time.sleep(0.001)
        job.kill()
        job.communicate()
        if job.returncode == 0:
            break  # it was done before
        kills += 1
        assert job.returncode == -signal.SIGKILL
        assert not source.output.exists()
        assert work.exists(), "a killed process cannot clear up"
    assert kills, "at least the first"
    if not source.output.exists():
        source.prepare()
    assert everything(source.output) == whole
    assert not work.exists()


@pytest.mark.parametrize("full", ["rows", "annotations", "shards"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, run_entry: EntryPoint, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """Of a kind: no file may grow larger than what the empty tables take, and a little more."""
    source, _ = many(tmp_path, 40, 20)
    more = ("--samples-per-shard", 100) if full == "shards" else ()
    if full == "rows":  # without a cache they are written at once
        monkeypatch.setattr(oxford_hic_tables, "_CACHE_KB", 4)
    before = everything(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        line = run_entry.refused(prepare_oxford_hic.main, *source.arguments(*more))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in line
    assert everything(tmp_path) == before


def test_it_starts_without_torch() -> None:
    code = "import sys; from dataset import prepare_oxford_hic; sys.exit('torch' in sys.modules)"
    assert finished([sys.executable, "-c", code]).returncode == 0


def test_from_the_csv_files_to_a_funny_answer(
    tmp_path: Path, projection: Path, run_entry: EntryPoint
) -> None:
    source, _ = many(tmp_path, 20, 6)
    job = source.started("--min-score", "1", "--max-captions-per-image", "3")
    printed, stderr = job.communicate()
    assert job.returncode == 0, stderr
    assert str(source.output) in printed
    tiny = ["model.model_type=tiny", "model.llama_model=assets/tiny/llama"]
    size = "datasets.cc_sbu_align.vis_processor.train.image_size=112"
    run_entry.ok(
        train.main,
        *("--cfg-path", "train_configs/minigpt4_humour_finetune.yaml", "--options", *tiny, size),
        f"datasets.cc_sbu_align.build_info.storage={source.output}/train",
        *(f"model.ckpt={projection}", f"run.output_dir={tmp_path}/run", "run.device=cpu"),
        *("run.max_epoch=1", "run.iters_per_epoch=2", "run.warmup_steps=1", "run.num_workers=0"),
    )
    (checkpoint,) = tmp_path.glob("run/*/checkpoint_0.pth")
    before = torch.load(projection, weights_only=True)["model"]["llama_proj.weight"]
    after = torch.load(checkpoint, weights_only=True)["model"]["llama_proj.weight"]
    assert not torch.equal(before, after)
    options = [*tiny, size, f"model.ckpt={checkpoint}", "model.low_resource=False"]
    chat = load_chat("eval_configs/minigpt4_humour_eval.yaml", options, "cpu")
    question = "Could you write a funny caption of this image for me?"
    file = next((source.output / "train" / "image").iterdir())
    answer = chat.ask(question, images=[file], session=chat.start())
    assert answer.strip()


@pytest.mark.slow
def test_the_pages_commands_fetch_and_prepare(dataset_env: Path, tmp_path: Path) -> None:
    """As a user would, pictures from a server on this machine."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.jpg").write_bytes(picture())
    (served / "b, c.png").write_bytes(picture("png"))
    (served / "page.jpg").write_text("<html>no picture</html>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        addresses = {"0012": "a.jpg", "12": "b,%20c.png", "7": "page.jpg", "8": "gone.jpg"}
        rows = [(image_id, f"{at}/{name}") for image_id, name in addresses.items()]
        info = as_csv("image_id,image_url", [*rows, ("nan", ""), ("0013", "NaN")])
        (tmp_path / "oxford_hic_image_info.csv").write_bytes(info)
        jokes = [(image_id, f"joke of {image_id}", "1,000") for image_id in addresses]
        data = as_csv("image_id,caption,funny_score", jokes)
        (tmp_path / "oxford_hic_data.csv").write_bytes(data)
        commands = commands_of("dataset/README_OXFORD_HIC.md")
        for begin in ("NO_ALBUMENTATIONS_UPDATE=1 .dataset-env/", "python dataset/prepare"):
            (command,) = (line for line in commands if line.startswith(begin))
            command = command.replace(".dataset-env", str(dataset_env))
            command = command.replace("python dataset", f"{sys.executable} {ROOT}/dataset")
            command = command.replace("_count 16", "_count 1")
            done = subprocess.run(
                command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        server.shutdown()
    kept = [pair for f in tmp_path.glob("oxford_hic/*/filter_cap.json") for pair in pairs(f.parent)]
    assert sorted(kept) == [("0012", "joke of 0012"), ("12", "joke of 12")]
    sizes = {}
    for file in tmp_path.glob("oxford_hic/*/image/*"):
        with Image.open(file) as opened:
            sizes[file.name] = opened.size
    assert sizes == {"0012.jpg": (12, 9), "12.jpg": (12, 9)}
    assert left_out(tmp_path / "oxford_hic") == {"no picture in --images": 2}
