"""The quickstart, reduced; `.ci/run` runs it whole."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.processes import finished


def test_reduced_quickstart_writes_what_it_promises(tmp_path: Path):
    stage1 = ["run.max_epoch=1", "run.iters_per_epoch=4", "run.batch_size_train=8"]
    stage2 = ["run.max_epoch=1", "run.iters_per_epoch=2"]
    command = [sys.executable, "-m", "minigpt4", "quickstart", "--seed", "3", "--pairs", "60"]
    command += ["--heldout", "9", "--output", str(tmp_path)]
    command += ["--stage1-options", *stage1, "--stage2-options", *stage2]
    result = finished(command)
    assert result.returncode == 0, result.stderr
    assert "torchrun --nproc-per-node 1 train.py --cfg-path" in result.stderr
    assert "caption names the right things" in result.stdout

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seed"] == 3
    assert summary["scenes"] == 9
    assert summary["stage1_seconds"] > 0
    assert summary["stage2_seconds"] > 0
    parts = {f"stage1_{x}" for x in ("two_objects", "three_objects", "withheld_pairs", "layout")}
    assert set(summary["caption_exact"]) == {"before", "stage1", *parts, "stage2"}
    assert set(summary["chat_failure"]) == {"stage1", "stage2"}
    assert set(summary["chat_exact"]) == {"stage2", "stage2_withheld_pairs"}
    kinds = {"shape", "color", "size", "count", "relation", "background", "yesno"}
    assert set(summary["chat_questions"]) == kinds
    assert summary["controls"] == {"shuffled_images": 0.0}
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 1000
    for stage in ("stage1", "stage2"):
        assert (tmp_path / f"{stage}.pth").is_file()


@pytest.mark.slow
def test_a_failed_stage_is_told_in_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "minigpt4", "quickstart", "--pairs", "60", "--heldout", "3"]
    command += ["--output", str(tmp_path), "--stage1-options", "run.max_epcoh=1"]
    result = finished(command)
    assert result.returncode == 2
    assert "did you mean 'max_epoch'?" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: stage1 failed")


@pytest.mark.slow
def test_stage1_learns_from_true_captions_and_not_from_shuffled_ones(tmp_path: Path):
    """A third of stage 1, with true captions and with each picture given another's caption."""
    from minigpt4.chat import load_chat
    from minigpt4.tools.tiny_world import answers, scoring
    from minigpt4.tools.tiny_world.data_sets import read_heldout, write_data_sets
    from tests.helpers.training import only_run, stage1_options, train

    exact = {}
    for kind in ("true", "shuffled"):
        scenes, output = tmp_path / kind / "scenes", tmp_path / kind / "run"
        write_data_sets(scenes, seed=7, pairs=3000, heldout=150, shuffle_captions=kind != "true")
        options = stage1_options(
            scenes, output, max_epoch=1, iters_per_epoch=250, batch_size_train=32, num_workers=1
        )
        result = train(*options)
        assert result.returncode == 0, result.stderr
        for name, ckpt in (("before", ""), (kind, only_run(output) / "checkpoint_0.pth")):
            chat = load_chat("eval_configs/tiny_eval.yaml", [f"model.ckpt={ckpt}"])
            split = answers.encode_split(chat, read_heldout(scenes / "heldout_seen"))
            captions = answers.write_captions(chat, split.images)
            exact[name] = scoring.caption_figures(split.scenes, captions)["exact"]
            if kind == "true":
                captions = answers.write_captions(chat, split.images.roll(1, 0))
                swapped = scoring.caption_figures(split.scenes, captions)["exact"]
    assert swapped <= 0.03, "captions must be of the picture that is shown"
    assert exact["before"] <= 0.03, "the towers know each other already"
    assert exact["shuffled"] <= 0.03
    assert exact["true"] >= 0.5
