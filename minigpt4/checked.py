"""Checked config: every section of a config bound once to the options of what it names."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minigpt4.config import Config, raise_faults
from minigpt4.config.checks import check_model_folder
from minigpt4.config.layers import builder_of, unknown_data_set
from minigpt4.conversation import SHIPPED, Template
from minigpt4.conversation.options import GenerationOptions, load_template
from minigpt4.errors import ConfigError, Fault, nearest, shown
from minigpt4.models.language_model import vocabulary_fault
from minigpt4.models.options import ModelOptions
from minigpt4.registry import (
    BUILDERS,
    LR_SCHEDULES,
    MODELS,
    RUNNERS,
    UNKNOWN,
    Bound,
    Entry,
    Registry,
    UnknownOptionError,
    bind,
    visible_parameters,
)
from minigpt4.runners.options import RunOptions

Purpose = Literal["training", "evaluation", "chat", "caching", "data"]
# Sections that are used, and those of them that may lack keys. Of other sections only names and
# types are checked.
_USED: dict[Purpose, tuple[str, ...]] = {
    "training": ("model", "datasets", "run"),
    "evaluation": ("model", "datasets", "run"),
    "caching": ("model", "datasets", "run"),
    "chat": ("model",),
    "data": ("model", "datasets"),
}
_PARTIAL: dict[Purpose, tuple[str, ...]] = {"evaluation": ("run",), "caching": ("model", "run")}


@dataclass(frozen=True)
class CheckedConfig:
    """A config with the typed options of every section, defaults included.

    Until all errors are reported, options that are wrong are missing in it: reading one raises
    :class:`UnknownOptionError`, which ends the check that reads it.
    """

    config: Config  # the merged YAML, as it is saved with a run
    purpose: Purpose
    model: Bound
    runner: Bound
    datasets: dict[str, Bound]
    chat: GenerationOptions  # as in the YAML, without the template loaded
    schedule: dict[str, Any] = field(default_factory=dict)  # options of the schedule alone

    @property
    def run(self) -> RunOptions:
        return self.runner.options

    @property
    def model_options(self) -> ModelOptions:  # a plug-in's model may have others
        return self.model.options

    @property
    def from_features(self) -> bool:
        """Whether no image is read, so that no tower is loaded."""
        found = [getattr(bound.options, "features", None) for bound in self.datasets.values()]
        # A validation reads the images themselves.
        trains = self.purpose == "training" and not self.run.valid_splits
        return trains and bool(found) and None not in found

    @functools.cached_property
    def template(self) -> Template:
        """Template of conversations; ``ConfigError`` if the language model's own is unusable."""
        return load_template(self.chat.template, str(self.config.model.get("llama_model")))

    @property
    def generation(self) -> GenerationOptions:
        """Generation options, with the template loaded; errors are those of :attr:`template`."""
        return replace(self.chat, template=self.template)


def check_sections(config: Config, purpose: Purpose) -> CheckedConfig:
    """Bind every section of a config; ``ConfigError`` has one line for every error in it."""
    checked, faults = bind_sections(config, purpose)
    raise_faults(config.path, faults)
    return checked


def bind_sections(config: Config, purpose: Purpose) -> tuple[CheckedConfig, list[Fault]]:
    """Bind every section of a config once; return what is valid of it, and all errors."""
    faults: list[Fault] = []
    bind_section = functools.partial(_bind_section, purpose, faults)
    model, runner, schedule = UNKNOWN, UNKNOWN, dict[str, Any]()
    if config.arch in MODELS.names():
        model = bind_section(MODELS.get(config.arch), config.model_options(), "model")
    else:
        faults += _unknown_keys(MODELS, config.model, ("arch", "model_type"), "model")
    if "datasets" in _USED[purpose] and not config.datasets:
        faults.append(Fault("datasets", "no data set is named"))
    datasets = dict.fromkeys(config.datasets, UNKNOWN)
    for name, entry in config.datasets.items():
        if found := _builder_faults(config, name):
            faults += found
        else:
            builder, options = BUILDERS.get(builder_of(name, entry)), config.dataset_options(name)
            datasets[name] = bind_section(builder, options, f"datasets.{name}")
    name = config.run.get("runner", "runner_base")
    if complaint := RUNNERS.complaint(name):
        faults.append(Fault("run.runner", complaint))
        faults += _unknown_keys(RUNNERS, config.run, ("runner",), "run")
    else:
        options, schedule, found = _of_schedule(config.run_options(), RUNNERS.get(name))
        runner = bind_section(RUNNERS.get(name), options, "run")
        faults += found
    chat, found = bind(GenerationOptions, config.chat, "chat", dry=True)
    faults += found
    # A malformed section or a dangling ${…} is reported once, not again as what it lacks.
    told = {fault.key for fault in config.faults}
    faults = [*config.faults, *(f for f in faults if not told & _and_above(f.key))]
    checked = CheckedConfig(config, purpose, model, runner, datasets, chat.options, schedule)
    if purpose != "data":
        faults += run_check(_chat_faults, checked)
    return checked, faults


def _bind_section(
    purpose: Purpose, faults: list[Fault], entry: Entry, options: Mapping[str, Any], where: str
) -> Bound:
    section, used = where.partition(".")[0], _USED[purpose]
    may_lack = section in _PARTIAL.get(purpose, ()) or section not in used
    bound, found = bind(entry, options, where, section in used, may_lack)
    faults += found
    return bound


def run_check(check: Callable[[Any], Iterable[Fault]], subject: Any) -> list[Fault]:
    """Return what a check finds, up to where it reads an option that is wrong itself."""
    found: list[Fault] = []
    with contextlib.suppress(UnknownOptionError):  # reported already
        found.extend(check(subject))
    return found


def _and_above(key: str) -> set[str]:
    """Return a dotted key and those that contain it."""
    parts = key.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def _of_schedule(
    options: Mapping[str, Any], runner: Any
) -> tuple[dict[str, Any], dict[str, Any], list[Fault]]:
    """Return the run's options without those of its schedule alone, these, and their errors."""
    known, name = visible_parameters(runner)[1], options.get("lr_sched")
    if not isinstance(name, str) or "lr_sched" not in known or name not in LR_SCHEDULES.names():
        return dict(options), {}, []
    parameters = visible_parameters(LR_SCHEDULES.get(name))[1]
    own = {key: value for key, value in options.items() if key in parameters and key not in known}
    bound, faults = bind(LR_SCHEDULES.get(name), own, "run", dry=True, partial=True)
    values = {key: value for key, value in vars(bound.options).items() if key in own}
    return {key: value for key, value in options.items() if key not in own}, values, faults


def _builder_faults(config: Config, name: str) -> list[Fault]:
    """Return what is wrong with the name of a data set's builder."""
    where, entry, known = f"datasets.{name}", config.datasets[name], BUILDERS.names()
    builder = builder_of(name, entry)
    if builder in known:
        return []
    if "type" in entry:
        text = f"unknown type of data set {shown(builder)}; {nearest(builder, known)}"
        return [Fault(f"{where}.type", text)]
    unknown = _unknown_keys(BUILDERS, entry, ("type",), where)
    mistyped = [fault for fault in unknown if "'type'" in fault.text]
    return mistyped or [Fault(where, unknown_data_set(name))]


def _unknown_keys(
    registry: Registry, options: Mapping[Any, Any], own: Sequence[str], where: str
) -> list[Fault]:
    """Return errors for the keys that no entry of a registry knows, if the entry is unknown."""
    known = {*own}
    for name in registry.names():
        known |= visible_parameters(registry.get(name))[1].keys()
    return [
        Fault(f"{where}.{key}", f"unknown key; {nearest(key, known)}")
        for key in options
        if key not in known
    ]


def _chat_faults(checked: CheckedConfig) -> Iterator[Fault]:
    """Return errors of the ``chat:`` section, and of a language model that cannot read turns."""
    yield from checked.chat.errors()
    model, spec = checked.config.model, checked.chat.template
    folder = model.get("llama_model")
    if not isinstance(folder, str) or check_model_folder(folder):
        return
    try:
        template = checked.template
    except ConfigError as error:
        yield Fault(*str(error).split(": ", 1))
        return
    # Of a template that the user brings, nothing is known but that the tokenizer must fit.
    separators: list[str | None] = [None]
    if spec in SHIPPED:
        separators.append(template.separator or template.stops[0])
    prompt, end = str(model.get("prompt_template")), str(model.get("end_sym"))
    if "###Human" in prompt or end.strip() == "###":
        separators.append("###")
    found = (vocabulary_fault(folder, separator) for separator in separators)
    yield from [Fault("model.llama_model", text) for text in found if text][:1]
