"""Checked config: every section of a config bound once to the options of what it names."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minigpt4.config import Config, raise_faults
from minigpt4.config.checks import check_model_folder
from minigpt4.config.presets import unknown_data_set
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
    Registry,
    UnknownOptionError,
    bind,
    visible_parameters,
)
from minigpt4.runners.options import RunOptions

Purpose = Literal["training", "evaluation", "chat", "caching", "data"]
# Sections that are used, and of these the ones that may lack keys: an evaluation's run, and the
# model of which only the towers are used. Of other sections only names and types are checked.
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
    :class:`UnknownOptionError`, which ends the check that asks.

    Attributes:
        config: The merged YAML, as it is saved with a run.
        purpose: What will be done with it. A chat uses the model alone.
        model: Builder of the model.
        runner: The runner.
        datasets: Builder of each data set.
        chat: Generation options, as they are in the YAML.
        schedule: Options that only the learning-rate schedule has.
    """

    config: Config
    purpose: Purpose
    model: Bound
    runner: Bound
    datasets: dict[str, Bound]
    chat: GenerationOptions
    schedule: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> RunOptions:
        """The run section."""
        options: RunOptions = self.runner.options
        return options

    @property
    def model_options(self) -> ModelOptions:
        """The model section; a plug-in's model may have other options."""
        options: ModelOptions = self.model.options
        return options

    @property
    def from_features(self) -> bool:
        """Whether no image is read, so that no tower is loaded."""
        cached = [
            getattr(own.options, "features", None) is not None for own in self.datasets.values()
        ]
        # A validation reads the images themselves.
        trains = self.purpose == "training" and not self.run.valid_splits
        return trains and bool(cached) and all(cached)

    @functools.cached_property
    def template(self) -> Template:
        """Template of conversations, in a chat as in training.

        Raises:
            ConfigError: for a language model whose own chat template cannot be used.
        """
        return load_template(self.chat.template, str(self.config.model.get("llama_model")))

    @property
    def generation(self) -> GenerationOptions:
        """Generation options, with the template loaded; errors are those of :attr:`template`."""
        return replace(self.chat, template=self.template)


def check_sections(config: Config, purpose: Purpose) -> CheckedConfig:
    """Bind every section of a config.

    Raises:
        ConfigError: one line for every error, each with file and dotted key.
    """
    checked, faults = bind_sections(config, purpose)
    raise_faults(config.path, faults)
    return checked


def bind_sections(config: Config, purpose: Purpose) -> tuple[CheckedConfig, list[Fault]]:
    """Bind every section of a config once; return what is valid of it, and all errors.

    Args:
        config: As loaded.
        purpose: What will be done with it.
    """
    used, partial = _USED[purpose], _PARTIAL.get(purpose, ())
    faults: list[Fault] = []

    def bind_section(
        registry: Registry, name: Any, options: Mapping[str, Any], where: str, section: str
    ) -> Bound:
        dry, may_lack = section in used, section in partial or section not in used
        bound, found = bind(registry.get(name), options, where, dry, may_lack)
        faults.extend(found)
        return bound

    model, runner = UNKNOWN, UNKNOWN
    schedule: dict[str, Any] = {}
    if config.arch in MODELS.names():
        model = bind_section(MODELS, config.arch, config.model_options(), "model", "model")
    else:
        faults += _unknown_keys(MODELS, config.model, ("arch", "model_type"), "model")
    datasets = {}
    if "datasets" in used and not config.datasets:
        faults.append(Fault("datasets", "no data set is named"))
    for name in config.datasets:
        if found := list(_builder_faults(config, name)):
            faults += found
            datasets[name] = UNKNOWN
        else:
            builder, options = config.builder_of(name), config.dataset_options(name)
            where = f"datasets.{name}"
            datasets[name] = bind_section(BUILDERS, builder, options, where, "datasets")
    name = config.run.get("runner", "runner_base")
    if name in RUNNERS.names():
        options, schedule, found = _of_schedule(config.run_options(), RUNNERS.get(name))
        runner = bind_section(RUNNERS, name, options, "run", "run")
        faults += found
    else:
        text = f"unknown runner {shown(name)}; known: {', '.join(RUNNERS.names())}"
        faults += [Fault("run.runner", text)]
        faults += _unknown_keys(RUNNERS, config.run, ("runner",), "run")
    chat, found = bind(GenerationOptions, config.chat, "chat", dry=True)
    faults += found
    # A malformed section or a dangling ${…} is reported once, not again as what it lacks.
    told = {fault.key for fault in config.faults}
    faults = [*config.faults, *(f for f in faults if not told & set(_and_above(f.key)))]
    checked = CheckedConfig(config, purpose, model, runner, datasets, chat.options, schedule)
    if purpose != "data":
        faults += run_check(_chat_faults, checked)
    return checked, faults


def run_check(check: Callable[[Any], Iterable[Fault]], subject: Any) -> list[Fault]:
    """Return what a check finds, up to where it reads an option that is wrong itself."""
    found: list[Fault] = []
    try:
        for fault in check(subject):
            found.append(fault)
    except UnknownOptionError:
        pass  # reported already
    return found


def _and_above(key: str) -> list[str]:
    """A dotted key and those it lies in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _of_schedule(
    options: Mapping[str, Any], runner: Any
) -> tuple[dict[str, Any], dict[str, Any], list[Fault]]:
    """Options of the run without those of its learning-rate schedule alone; these; errors."""
    known = visible_parameters(runner)[1]
    name = options.get("lr_sched")
    if not isinstance(name, str) or "lr_sched" not in known or name not in LR_SCHEDULES.names():
        return dict(options), {}, []
    parameters = visible_parameters(LR_SCHEDULES.get(name))[1]
    own = {key: value for key, value in options.items() if key in parameters and key not in known}
    bound, faults = bind(LR_SCHEDULES.get(name), own, "run", dry=True, partial=True)
    values = {key: value for key, value in vars(bound.options).items() if key in own}
    return {key: value for key, value in options.items() if key not in own}, values, faults


def _builder_faults(config: Config, name: str) -> Iterator[Fault]:
    """What is wrong with the name of a data set's builder."""
    where, builder, known = f"datasets.{name}", config.builder_of(name), BUILDERS.names()
    if builder in known:
        return
    entry = config.datasets[name]
    if "type" in entry:
        text = f"unknown type of data set {shown(builder)}; {nearest(builder, known)}"
        yield Fault(f"{where}.type", text)
        return
    unknown = _unknown_keys(BUILDERS, entry, ("type",), where)
    mistyped = [fault for fault in unknown if "'type'" in fault.text]
    yield from mistyped or [Fault(where, unknown_data_set(name))]


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


def _chat_faults(checked: CheckedConfig) -> Iterator[Fault]:
    """Errors of the ``chat:`` section, and a language model that was trained on other turns."""
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
    if (
        "###Human" in str(model.get("prompt_template"))
        or str(model.get("end_sym")).strip() == "###"
    ):
        separators.append("###")
    found = (vocabulary_fault(folder, separator) for separator in separators)
    yield from [Fault("model.llama_model", text) for text in found if text][:1]
