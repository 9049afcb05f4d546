"""Folders of runs and evaluations as the trainer and the evaluation write them."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from minigpt4.tools.tiny_world.phrases import caption
from minigpt4.tools.tiny_world.scenes import draw_scene, sample_scene
from tests.helpers.data_files import write_rows

# Hostile, of other scripts, of both directions.
HOSTILE = '<script>alert("no")</script><img src="https://example.com/x.png" onerror=alert(1)>'
TEXTS = ["红色的圆在左边", "مربع أخضر على اليمين", "a 🔴 circle 🙂", HOSTILE, "$x_1$ & {{ 7 * 7 }}"]
TINY = {"laion": {"sample_ratio": 4}, "cc_sbu": {"sample_ratio": 1}}
PARTS = ("runs", "curves", "validation", "samples", "failures", "evaluations", "looks", "bad",
         "differences")  # fmt: skip


def settings(stage: int = 1, **run: Any) -> dict[str, Any]:
    """A run's resolved config."""
    model: dict[str, Any] = {"arch": "minigpt4", "model_type": "tiny"}
    data: dict[str, Any] = dict(TINY)
    if stage == 2:
        model |= {"prompt_path": "prompts/alignment.txt", "max_txt_len": 160}
        data = {"cc_sbu_align": {}}
    own = {"init_lr": 0.01, "max_epoch": 4, "iters_per_epoch": 100, "batch_size_train": 32} | run
    return {"model": model, "datasets": data, "run": own}


def log_rows(epochs: int = 4, start: float = 1.7, end: float = 0.002) -> list[dict[str, Any]]:
    """A log of 100 steps per epoch, whose loss falls as a power from start to end."""
    rows: list[dict[str, Any]] = []
    total = 100 * epochs
    for at in range(10, total + 1, 10):
        epoch, step = (at - 1) // 100, (at - 1) % 100 + 1
        loss = start * (end / start) ** min(1, at / total * 2)
        rows.append(
            {"epoch": epoch, "step": step, "loss": loss, "lr": 0.01 * (1 - at / total) + 1e-4,
             "grad_norm": loss / 2 + 0.1, "samples_per_second": 140.0, "tokens_per_second": 4e3,
             "data_wait": 0.02, "memory_gb": 1.0, "eta_seconds": 3.0}
        )  # fmt: skip
        if step == 100:
            rows.append({"epoch": epoch, "train_loss": loss, "train_lr": 0.01})
    return rows


def valid_row(epoch: int, step: int, loss: float, data_set: str = "cc_sbu") -> dict[str, Any]:
    figures = {
        "samples": 50, "loss": loss, "token_accuracy": 1 / (1 + loss), "perplexity": math.exp(loss),
        "contains": 1 / (1 + loss) ** 2,
        "shuffled_loss": loss + 1.5, "shuffled_contains": 0.05,
    }  # fmt: skip
    return {"epoch": epoch, "step": step, "valid": {data_set: figures}}


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    started: str = "2026-11-22T08:16:15+00:00",
) -> Path:
    """A run's folder with its record and its log."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or settings()))
    environment = {
        "started": started, "command": ["train.py", "--cfg-path", "a b.yaml"], "seed": 42,
        "processes": 2, "git": {"commit": "0123456789abcdef", "branch": "main", "dirty": True},
        "python": "3.11.7", "platform": "Linux 6", "packages": {"torch": "2.15.0"},
        "cuda": None, "gpus": ["Tesla T4", "Tesla T4"], "earlier_launches": [],
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    write_rows(folder / "log.txt", log_rows() if rows is None else rows)
    (folder / "checkpoint_0.pth").write_bytes(b"")
    (folder / "checkpoint_3.pth").write_bytes(b"")
    return folder


def add_validation(folder: Path, says: Mapping[tuple[int, int], str]) -> None:
    """Generated texts for three scenes; ``says`` has a text for each (epoch, step)."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows = []
    for number in range(3):
        scene = sample_scene(random.Random(number), pairs="seen")
        name = f"pictures/{number}.png"
        draw_scene(scene).save(folder / name)
        for (epoch, step), text in says.items():
            rows.append(
                {"epoch": epoch, "step": step, "data_set": "cc_sbu", "image": f"0000/{number}",
                 "picture": name, "reference": caption(scene),
                 "output": text.format(caption=caption(scene)),
                 "score": {"contains": float("{" in text), "bleu": number / 10}}
            )  # fmt: skip
    write_rows(folder / "validation.jsonl", rows)


def make_evaluation(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"image": str(n), "reference": "a red circle", "output": text, "score": {"contains": n / 9}}
        for n, text in enumerate(TEXTS)
    ]
    rows.append({"image": "broken", "error": "unreadable image"})
    write_rows(folder / "heldout.jsonl", rows)
    summary = {"heldout": {"samples": 6, "unreadable": 1, "contains": 0.42, "length": 7.25,
                           "intervals": {"contains": [0.31, 0.5]},
                           "counts": {"contains": {"found": 2, "missed": 3}}}}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_full_runs(folder: Path) -> list[Path]:
    """Stage 1 and stage 2 with everything that a run's folder can hold, and an evaluation."""
    rows = log_rows()
    rows[5]["loss"] = rows[6]["loss"] = None
    rows += [valid_row(0, 0, 4.0), valid_row(0, 100, 0.9), valid_row(1, 100, 0.3)]
    rows += [valid_row(2, 100, 0.25), valid_row(3, 100, 0.28)]
    one = make_run(folder / "stage1" / "20261122-081615", rows)
    (one / "best.json").write_text('{"metric": "loss", "value": 0.25, "epoch": 2, "step": 100}')
    (one / "checkpoint_best.pth").write_bytes(b"")
    add_validation(one, {(0, 0): "the the the the", (1, 100): "a circle", (3, 100): "{caption}"})
    write_rows(one / "bad_samples.jsonl", [
        {"dataset": "laion", "shard": "00001.tar", "key": str(n), "cause": "unreadable image",
         "detail": TEXTS[n % 5]} for n in range(7)
    ] + [{"dataset": "cc_sbu", "shard": "00003.tar", "cause": "broken shard"}])  # fmt: skip
    write_rows(one / "nonfinite.jsonl", [
        {"epoch": 0, "step": 60, "rank": 0, "loss": "nan", "module": "llama_model.layers.3",
         "keys": ["00001/5", "00001/6"]}
    ])  # fmt: skip
    rows = log_rows(5, start=0.15, end=0.0006)
    rows += [valid_row(n, 100, 0.4 / (n + 1), "cc_sbu_align") for n in range(5)]
    config = settings(2, init_lr=0.005, max_epoch=5, batch_size_train=12)
    two = make_run(folder / "stage2" / "20261122-091615", rows, config, "2026-11-22T09:16:15+00:00")
    add_validation(two, {(0, 0): "a circle", (4, 100): "The picture shows {caption}."})
    looks = two / "looks"
    looks.mkdir()
    scene = draw_scene(sample_scene(random.Random(0), pairs="seen"))
    for name in ("0.png", "0_001.png", "0_002.png"):
        scene.save(looks / name)
    (looks / "looks.json").write_text(json.dumps([{
        "picture": "0.png", "image": "scene.png", "prompt": "Describe this image in detail.",
        "answer": "a red circle", "nearest_words": [[["red", 0.41], ["▁rouge", 0.3]]] * 16,
        "overlays": [{"token": "red", "file": "0_001.png"}, {"token": HOSTILE, "file": "0_002.png"},
                     {"token": "gone", "file": "../../config.yaml"}],
    }]))  # fmt: skip
    return [one, two, make_evaluation(folder / "evaluation")]
