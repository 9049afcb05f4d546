"""Every benchmark refuses to check or measure nothing, in one line."""

import importlib

import pytest

from tests.helpers.repo import EntryPoint, error_line


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("bad_shards", "--shards 1 --samples 3", 1, "at least 68 samples"),
        ("caption_throughput", "--images 0", 1, "nothing to caption"),
        ("chat_prefill", "--repeats 0", 2, "--repeats and --histories must be at least 1"),
        ("chat_sessions", "--sessions 1", 1, "at least two sessions"),
        ("config_fuzz", "--mutations 0", 1, "--mutations: nothing to check"),
        ("data_growth", "--rows 1000", 2, "--rows needs two sizes or more, above 100"),
        ("data_growth", "--rows 100 500", 2, "--rows needs two sizes or more, above 100"),
        ("data_growth", "--repeats 0", 2, "--repeats at least 1"),
        ("growth", "--size tiny --batches --captions --processes", 1, "nothing was measured"),
        ("growth", "--repeats 0", 2, "at least 1, --captions between 4 and 159"),
        ("growth", "--captions 3", 2, "--captions between 4 and 159"),
        ("growth", "--captions 160", 2, "--captions between 4 and 159"),
        ("kill_resume", "--kills 0", 1, "--kills: nothing to check"),
        ("loader", "--batch 0", 2, "at least 1"),
        ("looks", "--run nowhere", 2, "run make quickstart"),
        ("packing", "--repeats 0", 2, "at least 1"),
        ("quantization", "--width 100", 2, "--width must be 64"),
        ("quantization", "--repeats 0", 2, "must be at least 1"),
        ("server_fuzz", "--requests 0", 1, "--requests: nothing to check"),
        ("step_profile", "--steps 0", 2, "--steps must be at least 1"),
        ("tiny_world", "--seeds 0", 1, "--seeds: nothing to check"),
        ("train_throughput", "--repeats 0", 2, "must be at least 1"),
        ("train_throughput", "--batch 0", 2, "must be at least 1"),
    ],
)
def test_nothing_to_measure_is_refused(
    run_entry: EntryPoint, name: str, arguments: str, code: int, message: str
):
    main = importlib.import_module(f"benchmarks.{name}").main
    found, stderr = run_entry(main, *arguments.split())
    assert found == code
    assert message in error_line(stderr)
