"""Options are bound once, and what is wrong in one place stops no check of another."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import train
from minigpt4 import checked, registry
from minigpt4.checked import bind_sections
from minigpt4.config import layers, load_config
from minigpt4.conversation import options as chat_options
from minigpt4.registry import UnknownOptionError
from tests.helpers.processes import finished
from tests.helpers.repo import EntryPoint
from tests.helpers.training import STAGE1, stage1_options


def test_a_training_binds_every_section_once(
    run_entry: EntryPoint, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind, counts = registry.bind, Counter[tuple[str, Any]]()

    def counted(entry: Any, options: Any, where: str, *more: Any, **named: Any) -> Any:
        counts[where, entry] += 1
        return bind(entry, options, where, *more, **named)

    for module in (registry, checked, layers, chat_options):
        monkeypatch.setattr(module, "bind", counted)
    options = stage1_options(scenes, tmp_path, max_epoch=1, iters_per_epoch=1)
    run_entry.ok(train.main, "--cfg-path", STAGE1, "--options", *options)
    sections = {"model", "datasets.laion", "datasets.cc_sbu", "run", "chat"}
    found = {(where, entry): n for (where, entry), n in counts.items() if where in sections}
    assert {where for where, _ in found} == sections
    assert set(found.values()) == {1}


def test_an_option_that_is_wrong_cannot_be_read() -> None:
    checked, faults = bind_sections(load_config(STAGE1, ["run.init_lr=fast"]), "training")
    assert [fault.key for fault in faults if fault.key.startswith("run")] == ["run.init_lr"]
    assert checked.run.max_epoch == 4
    assert checked.run.seed == 42
    with pytest.raises(UnknownOptionError):
        _ = checked.run.init_lr


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "pydantic", "omegaconf"}
    code = f"import sys, minigpt4; sys.exit(bool({heavy} & set(sys.modules)))"
    assert finished([sys.executable, "-c", code]).returncode == 0


def test_every_name_of_the_public_api_can_be_imported() -> None:
    import minigpt4

    assert all(getattr(minigpt4, name) is not None for name in minigpt4.__all__)
