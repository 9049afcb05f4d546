"""Checking: every section of a config against the signatures of the parts it names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.config.layers import Config
from minigpt4.config.presets import unknown_data_set
from minigpt4.errors import ConfigError, shown
from minigpt4.registry import (
    BUILDERS,
    MODELS,
    RUNNERS,
    Fault,
    Registry,
    bind,
    nearest,
    visible_parameters,
)

_LONGEST_KEY, _LONGEST_TEXT = 200, 1000


def check_config(
    config: Config,
    sections: Sequence[str] = ("model", "datasets", "run"),
    extra: Callable[[Config], list[Fault]] | None = None,
    partial: Sequence[str] = (),
) -> None:
    """Hold a config as :func:`find_faults` does, and what ``extra`` finds with it.

    Raises:
        ConfigError: one line for every fault, each with file and dotted key.
    """
    faults = find_faults(config, sections, partial)
    raise_faults(config.path, faults + (extra(config) if extra else []))


def find_faults(
    config: Config,
    sections: Sequence[str] = ("model", "datasets", "run"),
    partial: Sequence[str] = (),
) -> list[Fault]:
    """What is wrong in any section by itself.

    Args:
        config: What :func:`minigpt4.config.load_config` gave.
        sections: Those that will be used. Of the others, a chat's data sets for one, only names
            and types are held: they may lack keys and name files that are not there.
        partial: Of the sections that will be used, those that may lack keys: an evaluation's run,
            and the model of which only the towers are used.
    """
    faults: list[Fault] = []
    if config.arch in MODELS.names():
        entry, incomplete = MODELS.get(config.arch), "model" in partial
        options = config.model_options()
        faults += bind(entry, options, "model", dry=True, partial=incomplete)[1]
    else:
        faults += _unknown_keys(MODELS, config.model, ("arch", "model_type"), "model")
    faults += _dataset_faults(config, used="datasets" in sections)
    faults += _run_faults(config, used="run" in sections, partial="run" in partial)
    # A section that is none, or a ${…} that leads nowhere, is told once and not as what it lacks.
    told = {fault.key for fault in config.faults}
    return [*config.faults, *(fault for fault in faults if not told & set(_and_above(fault.key)))]


def _and_above(key: str) -> list[str]:
    """A dotted key and those it lies in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Tell faults, one a line.

    Raises:
        ConfigError: when there are any.
    """
    lines = dict.fromkeys(_line(path, fault) for fault in faults)
    if lines:
        raise ConfigError("\n".join(lines))


def _line(path: Path, fault: Fault) -> str:
    line = f"{_printable(fault.key, _LONGEST_KEY)}: {_printable(fault.text, _LONGEST_TEXT)}"
    # What the command line said is in no file.
    return line if fault.key.startswith("--") else f"{path}: {line}"


def _printable(text: str, longest: int) -> str:
    """One line whatever keys and values hold: line breaks, escapes, half a surrogate pair."""
    shortened = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shortened)


def _unknown_keys(
    registry: Registry, options: Mapping[Any, Any], own: Sequence[str], where: str
) -> list[Fault]:
    """Keys that nothing in a registry knows, where it is not known what the options are for."""
    known = {*own}
    for name in registry.names():
        known |= visible_parameters(registry.get(name))[1].keys()
    return [
        Fault(f"{where}.{key}", f"unknown key; {nearest(key, known)}")
        for key in options
        if key not in known
    ]


def _dataset_faults(config: Config, used: bool) -> list[Fault]:
    faults: list[Fault] = []
    if used and not config.datasets:
        faults.append(Fault("datasets", "no data set is named"))
    known = BUILDERS.names()
    for name, entry in config.datasets.items():
        where, builder = f"datasets.{name}", config.builder_of(name)
        if "type" in entry and builder not in known:
            text = f"unknown type of data set {shown(builder)}; {nearest(builder, known)}"
            faults.append(Fault(f"{where}.type", text))
        elif builder not in known:
            mistyped = [
                f for f in _unknown_keys(BUILDERS, entry, ("type",), where) if "'type'" in f.text
            ]
            faults += mistyped or [Fault(where, unknown_data_set(name))]
        else:
            options = config.dataset_options(name)
            faults += bind(BUILDERS.get(builder), options, where, dry=used, partial=not used)[1]
    return faults


def _run_faults(config: Config, used: bool, partial: bool) -> list[Fault]:
    name, known = config.run.get("runner", "runner_base"), RUNNERS.names()
    if name not in known:
        text = f"unknown runner {shown(name)}; known: {', '.join(known)}"
        unknown = _unknown_keys(RUNNERS, config.run, ("runner",), "run")
        return [Fault("run.runner", text), *unknown]
    options = config.run_options()
    return bind(RUNNERS.get(name), options, "run", dry=used, partial=partial or not used)[1]
