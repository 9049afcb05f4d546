"""``run.shard: fsdp``: less of the language model in each process, and the same numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from minigpt4.assembly import build_model
from minigpt4.checked import Purpose, check_sections
from minigpt4.config import load_config
from minigpt4.errors import ConfigError
from minigpt4.models.speed.sharding import shard_language_model
from minigpt4.preflight.preflight import preflight
from tests.helpers.messages import one_line
from tests.helpers.processes import finished
from tests.helpers.training import STAGE1, stage1_options

TINY = "eval_configs/tiny_eval.yaml"
CPU = torch.device("cpu")


CASES = {
    "fp32": "",
    "bf16": "model.precision=bf16",
    "more trained": "model.trainable=[llama_proj,q_former,lora] model.lora.dropout=0.0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two real processes wrote of all cases."""
    folder = tmp_path_factory.mktemp("sharded")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = ["-m", "tests.models.speed.sharded_step", str(folder), *CASES.values()]
    result = finished([sys.executable, *launcher, *worker])
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_hold_half_and_compute_the_same(case: str, folder: Path) -> None:
    files = sorted(folder.glob(f"case{list(CASES).index(case)}_rank*.json"))
    reports = [json.loads(file.read_text()) for file in files]
    assert [report["world_size"] for report in reports] == [2, 2]
    for report in reports:
        # Numbers may be equal without any sharding: its traces in memory may not be missing.
        assert sorted(report["sharded"]) == sorted(report["frozen in layers"])
        whole, here = report["bytes"]
        assert here == pytest.approx(whole / 2, rel=0.01)
        sizes = [float(table.split("llama_model")[1].split()[2]) for table in report["tables"]]
        assert sizes[0] - sizes[1] == pytest.approx((whole - here) / 1e9, abs=1.1e-4)
        assert report["names"][0] == report["names"][1] == report["names"][2]
        assert {"llama_proj.weight", "llama_proj.bias"} <= set(report["names"][0])
        assert max(report["losses"]) - min(report["losses"]) < 1e-6
        assert max(report["errors"].values()) < 1e-6 * report["largest"]
        assert report["answers"][0] == report["answers"][1]
    assert reports[0]["losses"][0] != reports[1]["losses"][0], "each has a batch of its own"
    assert [len(report["answers"][1]) for report in reports] == [2, 5]


def test_one_process_has_nothing_to_share_out(caplog: pytest.LogCaptureFixture) -> None:
    options = ["model.ckpt=", "run.task=image_text_pretrain", "run.shard=fsdp"]
    with caplog.at_level("INFO", logger="minigpt4"):
        model = build_model(check_sections(load_config(TINY, options), "chat"), CPU)
        shard_language_model(model, CPU)
    assert "there is one process, so nothing is shared out" in caplog.text
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())


@pytest.mark.parametrize(
    ("option", "mentions"),
    [
        ("model.quantize=int8", ["model.quantize: int8", "run.shard: fsdp"]),
        ("model.low_resource=True", ["model.low_resource: True", "run.shard: fsdp"]),
        ("run.evaluate=True", ["run.shard: fsdp is for a training", "model.quantize"]),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_loading(
    option: str, mentions: list[str], scenes: Path, tmp_path: Path
) -> None:
    options = [*stage1_options(scenes, tmp_path), "run.shard=fsdp", option]
    purpose: Purpose = "evaluation" if "evaluate" in option else "training"
    with one_line(ConfigError, *mentions):
        preflight(load_config(STAGE1, options), purpose)
