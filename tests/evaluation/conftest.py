"""A drawn world of few samples to evaluate on, and a guard against loading too early."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.tools.tiny_world.data_sets import write_data_sets
from tests.helpers.data_files import write_rows

YAML = """
model: {{arch: minigpt4, model_type: tiny, ckpt: {few}/projection.pth, end_sym: "###"}}
datasets:
  mine:
    type: pairs
    storage: {few}/rows.jsonl
    vis_processor: {{train: {{name: blip2_image_eval, image_size: 112}}}}
run: {{evaluate: True, batch_size_eval: 4, num_workers: 0}}
chat: {{max_new_tokens: 5}}
"""
ROWS: list[dict[str, Any]] = [
    {"image": "0.jpg", "caption": "a red circle", "references": ["a red circle", "one circle"]},
    {"image": "1.jpg", "references": ["a blue square", "a square"], "objects": ["square"]},
    {"image": "2.jpg", "question": "What is it?", "answers": [{"answer": "cross"}] * 9 + ["x"]},
    {"image": "3.jpg", "question": "Which is it?", "choices": ["circle", "a star"], "answer": 1},
    {"image": "4.jpg", "question": "And here?", "choices": ["circle", "star"], "answer": "circle"},
]


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, rows of one's own about them with a YAML, and a projection never trained."""
    folder = tmp_path_factory.mktemp("few")
    write_data_sets(folder, seed=2, pairs=14, descriptions=3, heldout=7)
    torch.manual_seed(3)
    init = torch.nn.Linear(128, 160).state_dict()
    trained = {"model": {f"llama_proj.{name}": value for name, value in init.items()}}
    torch.save(trained, folder / "projection.pth")
    rows = [{**row, "image": f"heldout_seen/image/{row['image']}"} for row in ROWS]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "mine.yaml").write_text(YAML.format(few=folder))
    return folder


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("build_model", "build_datasets"):
        monkeypatch.setattr(f"minigpt4.evaluation.evaluation.{name}", pytest.fail)
