import pytest

from minigpt4.errors import ConfigError
from minigpt4.registry import LR_SCHEDULES
from tests.helpers.recorded import GOLDEN
from tests.helpers.recorded.comparison import files_of, read_json


def test_every_schedule_of_ours_is_recorded() -> None:
    """That all recorded rates are reproduced is in ``test_parity.py``."""
    (file,) = files_of(GOLDEN, "lr_schedules.json")
    recorded = read_json(file)
    assert {facts["scheduler"] for facts in recorded} == set(LR_SCHEDULES.names())
    assert any(rate == "TypeError" for facts in recorded for *_, rate in facts["epoch_step_lr"])


def test_the_step_schedule_without_a_decay_rate_is_refused_at_the_start() -> None:
    options = {"init_lr": 1e-3, "min_lr": 0.0, "max_epoch": 2}
    with pytest.raises(ConfigError, match=r"^run\.lr_decay_rate: [^\n]+$"):
        LR_SCHEDULES.build("linear_warmup_step_lr", options)


def test_one_epoch_of_the_step_schedule_needs_no_decay_rate() -> None:
    options = {"init_lr": 1e-3, "min_lr": 0.0, "max_epoch": 1, "warmup_steps": 2, "warmup_lr": 0.0}
    schedule = LR_SCHEDULES.build("linear_warmup_step_lr", options)
    assert [schedule(0, step) for step in range(4)] == [0.0, 5e-4, 1e-3, 1e-3]


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="linear_warmup_cosine_lr, linear_warmup_step_lr") as e:
        LR_SCHEDULES.build("cosine", {})
    assert "\n" not in str(e.value)
