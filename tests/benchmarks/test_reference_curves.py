"""The recorded curves: out of run folders as the trainer leaves them."""

from pathlib import Path

from benchmarks.reference_curves import SETTINGS, collect
from tests.tools.report.folders import log_rows, make_run, settings


def test_curves_and_settings_of_each_seed_and_stage(tmp_path: Path):
    others = dict.fromkeys(SETTINGS, 1) | {"max_epoch": 2, "iters_per_epoch": 100}
    for seed, start in ((0, 2.0), (1, 4.0)):
        for stage in ("stage1", "stage2"):
            rows = log_rows(2, start=start)
            rows[3]["loss"] = None  # such a line has nothing to record
            config = settings(**others, log_freq=10)
            make_run(tmp_path / f"seed{seed}" / stage / "20261122-081615", rows, config)
    found = collect([tmp_path / "seed0", tmp_path / "seed1"])
    assert found["settings"]["stage1"] == others
    one, two = found["stages"]["stage2"]
    assert [step for step, _ in one] == [10, 20, 30, *range(50, 201, 10)]
    assert one[0][1] < two[0][1]
    assert one[-1][1] == 0.002
