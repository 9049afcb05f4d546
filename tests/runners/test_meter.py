"""The meter's figures, on a clock that stands until it is told to go on."""

import pytest
import torch

from minigpt4.runners.run_log import Meter, peak_memory


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(**options) -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(clock=clock, **options), clock


@pytest.mark.parametrize("processes", [1, 3])
def test_figures_of_an_interval(processes: int):
    meter, clock = make(steps_left=10, processes=processes)
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.count(samples=6, tokens=80)
    figures = meter.read()
    assert figures.pop("memory_gb") > 0
    assert figures == {
        "samples_per_second": 3.0 * processes,
        "tokens_per_second": 40.0 * processes,
        "data_wait": 0.25,
        "eta_seconds": 12.0,  # 6 steps of 2 s
    }


def test_each_reading_counts_anew_and_the_time_left_takes_all_of_them():
    meter, clock = make(steps_left=6)
    clock.now += 1
    meter.count(samples=4)
    assert meter.read()["samples_per_second"] == 4
    clock.now += 3
    meter.count(samples=4)
    figures = meter.read()
    assert figures["samples_per_second"] == 1.33
    assert figures["eta_seconds"] == 8  # 4 steps left, 2 s each so far
    assert "tokens_per_second" not in figures


def test_a_pause_between_epochs_is_not_counted():
    meter, clock = make(steps_left=2)
    clock.now += 60  # a checkpoint, say
    meter.start()
    clock.now += 1
    meter.count(samples=5)
    figures = meter.read()
    assert figures["samples_per_second"] == 5
    assert figures["eta_seconds"] == 1


def test_a_reading_without_a_step_or_a_second_is_no_crash():
    meter, _ = make(steps_left=0)
    figures = meter.read()
    assert figures["samples_per_second"] == 0
    assert "eta_seconds" not in figures


def test_waiting_that_ends_in_an_error_is_waiting():
    meter, clock = make(steps_left=1)

    def no_more_batches() -> None:
        clock.now += 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"), meter.waiting():
        no_more_batches()
    assert meter.read()["data_wait"] == 1


def test_memory_is_in_bytes():
    held = torch.ones(30_000_000)  # 120 MB
    assert 120e6 < peak_memory(torch.device("cpu")) < 100e9
    del held


@pytest.mark.gpu
def test_memory_of_a_gpu_is_what_tensors_took():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.ones(250_000_000, device=device)
    del held
    assert peak_memory(device) >= 1e9
    assert Meter(1, device=device).read()["memory_gb"] >= 1
