import json
from typing import Any

import pytest

from minigpt4.errors import ConfigError
from minigpt4.registry import LR_SCHEDULES
from minigpt4.runners.lr_schedules import LRSchedule
from tests.recorded import GOLDEN

RECORDED: list[dict[str, Any]] = json.loads(
    (GOLDEN / "lr_schedules.json").read_text(encoding="utf-8")
)


def build(recorded: dict[str, Any]) -> LRSchedule:
    options = dict(recorded["config"])
    options["warmup_lr"] = options.pop("warmup_start_lr")
    schedule: LRSchedule = LR_SCHEDULES.build(recorded["scheduler"], options)
    return schedule


def title(recorded: dict[str, Any]) -> str:
    decay = recorded["config"].get("decay_rate", "")
    return f"{recorded['name']}-{recorded['scheduler']}-{decay}"


def fails_in_the_original(recorded: dict[str, Any]) -> bool:
    return any(rate == "TypeError" for _, _, rate in recorded["epoch_step_lr"])


WORKING = [recorded for recorded in RECORDED if not fails_in_the_original(recorded)]
FAILING = [recorded for recorded in RECORDED if fails_in_the_original(recorded)]


@pytest.mark.parametrize("recorded", WORKING, ids=title)
def test_every_recorded_rate_is_reproduced_exactly(recorded: dict[str, Any]) -> None:
    schedule = build(recorded)
    ours = [schedule(epoch, step) for epoch, step, _ in recorded["epoch_step_lr"]]
    assert ours == [rate for _, _, rate in recorded["epoch_step_lr"]]


@pytest.mark.parametrize("recorded", FAILING, ids=title)
def test_what_fails_midway_in_the_original_is_refused_at_the_start(
    recorded: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"^run\.lr_decay_rate: [^\n]+$"):
        build(recorded)


def test_both_kinds_are_recorded() -> None:
    assert len(WORKING) > 15
    assert FAILING
    assert {recorded["scheduler"] for recorded in WORKING} == set(LR_SCHEDULES.names())


def test_one_epoch_of_the_step_schedule_needs_no_decay_rate() -> None:
    options = {"init_lr": 1e-3, "min_lr": 0.0, "max_epoch": 1, "warmup_steps": 2, "warmup_lr": 0.0}
    schedule = LR_SCHEDULES.build("linear_warmup_step_lr", options)
    assert [schedule(0, step) for step in range(4)] == [0.0, 5e-4, 1e-3, 1e-3]


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="linear_warmup_cosine_lr, linear_warmup_step_lr") as e:
        LR_SCHEDULES.build("cosine", {})
    assert "\n" not in str(e.value)
