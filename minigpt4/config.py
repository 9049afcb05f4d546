"""Config: preset < YAML < ``--options``, checked as a whole before anything is loaded.

First stop of both paths. Importing this module imports no torch; checking a config imports the
packages of the parts it names, because it is their signatures that say which keys exist.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigpt4.errors import ConfigError, one_line
from minigpt4.registry import (
    BUILDERS,
    IMAGE_PROCESSORS,
    MODELS,
    RUNNERS,
    TEXT_PROCESSORS,
    Fault,
    bind,
    import_plugins,
    nearest,
)

SECTIONS = ("model", "datasets", "run", "chat", "processors", "plugins")
# Keys of the original that decide nothing any more, and what decides now.
RETIRED = {
    "run.world_size": "torchrun decides the number of processes",
    "run.dist_url": "torchrun decides the address",
    "run.distributed": "torchrun decides whether there are several processes",
    "run.job_name": "run.output_dir names the run",
    "run.wandb_log": "log.txt in the run's folder keeps the figures",
    "run.train_splits": "a training reads what each data set's build_info names",
    "preprocess": "each data set names its own processors",
    "model.device_8bit": "--gpu-id decides the device",
    "model.drop_path_rate": "a frozen visual encoder drops no paths",
    "model.use_grad_checkpoint": "a frozen visual encoder keeps nothing for gradients",
    "model.prompt": "model.prompt_path names the prompts",
    "model.freeze_vit": "everything but the projection is frozen",
    "model.freeze_qformer": "everything but the projection is frozen",
}
REFUSED_ARCHS = {"minigpt_v2": "MiniGPT-v2 is not supported; use arch minigpt4 or mini_gpt4"}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """A merged config. ``path`` is the YAML; the sections are plain dictionaries."""

    path: Path
    model: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    run: dict[str, Any]
    chat: dict[str, Any]
    faults: tuple[Fault, ...] = ()  # found while merging; check_config reports them

    @property
    def arch(self) -> str:
        return str(self.model.get("arch"))

    def model_options(self) -> dict[str, Any]:
        """The model section without the two keys that chose the model."""
        return {k: v for k, v in self.model.items() if k not in ("arch", "model_type")}

    def run_options(self) -> dict[str, Any]:
        """The run section without the key that chose the runner."""
        return {key: value for key, value in self.run.items() if key != "runner"}

    def resolved(self) -> dict[str, Any]:
        """Everything, as it is saved beside a run."""
        return {
            "model": self.model,
            "datasets": self.datasets,
            "run": self.run,
            "chat": self.chat,
        }


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a YAML, put its presets underneath and ``--options`` on top.

    Args:
        path: The YAML file.
        options: ``a.b=c`` each; the value is read as YAML.

    Raises:
        ConfigError: for a file, section or option that cannot be read at all; faults *inside* the
            sections are found by :func:`check_config`.
    """
    path = Path(path)
    merged = OmegaConf.merge(_read_yaml(path), *[_read_option(option) for option in options])
    assert isinstance(merged, DictConfig)
    try:
        return _merge(path, merged)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, a missing ???
        raise ConfigError(f"{path}: {one_line(error)}") from error


def _merge(path: Path, merged: DictConfig) -> Config:
    faults = _unknown_sections(merged)
    if faults:
        raise ConfigError(_lines(path, faults))
    import_plugins(_listed(merged.get("plugins"), path), path.parent)
    preset, faults = _model_preset(merged)
    layers = OmegaConf.merge(preset, *_data_presets(merged), merged)
    whole: Any = OmegaConf.to_container(layers, resolve=True, throw_on_missing=True)
    faults += _retire(path, whole)
    defaults = whole.get("processors") or {}
    processor_faults = _processor_faults(defaults)
    datasets = {
        name: _with_processor_defaults(entry, {} if processor_faults else defaults)
        for name, entry in (whole.get("datasets") or {}).items()
    }
    model, run, chat = (whole.get(section) or {} for section in ("model", "run", "chat"))
    return Config(path, model, datasets, run, chat, (*faults, *processor_faults))


def check_config(
    config: Config,
    sections: Sequence[str] = ("model", "datasets", "run"),
    extra: Callable[[Config], list[Fault]] | None = None,
    across: Callable[[Config], list[Fault]] | None = None,
    partial: Sequence[str] = (),
) -> None:
    """Hold every section against the signatures of the parts it names.

    Args:
        config: What :func:`load_config` gave.
        sections: Those that will be used. Of the others, a chat's data sets for one, only names
            and types are held: they may lack keys and name files that are not there.
        extra: Checks of what is not known here (the ``chat`` section).
        across: Checks that concern several sections at once; made when each is sound by itself.
        partial: Of the sections that will be used, those that may lack keys: an evaluation's run.

    Raises:
        ConfigError: one line for every fault, each with file and dotted key.
    """
    faults = list(config.faults)
    if config.arch in MODELS.names():
        faults += bind(MODELS.get(config.arch), config.model_options(), "model", dry=True)[1]
    faults += _dataset_faults(config, used="datasets" in sections)
    faults += _run_faults(config, used="run" in sections, partial="run" in partial)
    faults += extra(config) if extra else []
    faults += across(config) if across and not faults else []
    if faults:
        raise ConfigError(_lines(config.path, faults))


def _lines(path: Path, faults: Sequence[Fault]) -> str:
    return "\n".join(f"{path}: {fault.key}: {fault.text}" for fault in faults)


def _dataset_faults(config: Config, used: bool) -> list[Fault]:
    faults: list[Fault] = []
    if used and not config.datasets:
        faults.append(Fault("datasets", "no data set is named"))
    known = BUILDERS.names()
    for name, options in config.datasets.items():
        where = f"datasets.{name}"
        if name not in known:
            faults.append(Fault(where, f"unknown data set; {nearest(name, known)}"))
            continue
        faults += bind(BUILDERS.get(name), options, where, dry=used, partial=not used)[1]
    return faults


def _run_faults(config: Config, used: bool, partial: bool) -> list[Fault]:
    name, known = config.run.get("runner", "runner_base"), RUNNERS.names()
    if name not in known:
        return [Fault("run.runner", f"unknown runner {name!r}; known: {', '.join(known)}")]
    options = config.run_options()
    return bind(RUNNERS.get(name), options, "run", dry=used, partial=partial or not used)[1]


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; --cfg-path takes a YAML, e.g. from train_configs/"
        )
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(content, DictConfig) or not content:
        raise ConfigError(f"{path}: must hold sections such as model:, datasets: and run:")
    return content


def _read_option(option: str) -> DictConfig:
    key, equals, _ = option.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--options {option}: must look like section.key=value")
    try:
        return OmegaConf.from_dotlist([option])
    except (yaml.YAMLError, OmegaConfBaseException, TypeError) as error:
        raise ConfigError(f"--options {option}: {one_line(error)}") from error


def _listed(value: Any, path: Path) -> list[str]:
    names = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: plugins: must be a list of files or modules")
    return names


def _unknown_sections(merged: DictConfig) -> list[Fault]:
    faults = []
    for name, value in merged.items():
        if name in RETIRED:
            continue
        if name not in SECTIONS:
            faults.append(Fault(str(name), f"unknown section; {nearest(str(name), SECTIONS)}"))
        elif name != "plugins" and value is not None and not OmegaConf.is_dict(value):
            faults.append(Fault(str(name), f"must be a set of keys, not {value!r}"))
    for name, entry in (merged.get("datasets") or {}).items() if not faults else ():
        if entry is not None and not OmegaConf.is_dict(entry):
            faults.append(Fault(f"datasets.{name}", f"must be a set of keys, not {entry!r}"))
    return faults


def _model_preset(merged: DictConfig) -> tuple[DictConfig, list[Fault]]:
    """``configs/models/<arch>_<model_type>.yaml``; an arch without presets needs none."""
    model = merged.get("model") or {}
    arch, model_type = model.get("arch"), model.get("model_type")
    empty = OmegaConf.create({})
    if isinstance(arch, str) and arch in REFUSED_ARCHS:
        return empty, [Fault("model.arch", REFUSED_ARCHS[arch])]
    if not isinstance(arch, str) or arch not in MODELS.names():
        text = f"unknown model {arch!r}" if arch else "missing"
        return empty, [Fault("model.arch", f"{text}; known: {', '.join(MODELS.names())}")]
    folder = resources.files("minigpt4.configs") / "models"
    files = {
        file.name.removeprefix(f"{arch}_").removesuffix(".yaml"): file
        for file in folder.iterdir()
        if file.name.startswith(f"{arch}_")
    }
    if not files and model_type is None:
        return empty, []
    if not isinstance(model_type, str) or model_type not in files:
        text = f"unknown model type {model_type!r}" if model_type else "missing"
        return empty, [Fault("model.model_type", f"{text}; known: {', '.join(sorted(files))}")]
    preset = OmegaConf.create(files[model_type].read_text(encoding="utf-8"))
    assert isinstance(preset, DictConfig)
    return preset, []


def _data_presets(merged: DictConfig) -> list[DictConfig]:
    folder = resources.files("minigpt4.configs") / "datasets"
    presets = []
    for name in merged.get("datasets") or {}:
        file = folder / f"{name}.yaml"
        if file.is_file():
            entry = OmegaConf.create(file.read_text(encoding="utf-8"))
            presets.append(OmegaConf.create({"datasets": {name: entry}}))
    return presets


def _retire(path: Path, whole: dict[str, Any]) -> list[Fault]:
    """Take out keys that decide nothing any more, with one line each."""
    faults = []
    for key, reason in RETIRED.items():
        section, _, name = key.rpartition(".")
        keys = (whole.get(section) or {}) if section else whole
        if name not in keys:
            continue
        value = keys.pop(name)
        if name.startswith("freeze_") and value is not True:
            faults.append(Fault(key, f"only True is supported: {reason}"))
        else:
            logger.info("%s: %s is ignored: %s", path, key, reason)
    return faults


def _processor_faults(defaults: dict[str, Any]) -> list[Fault]:
    """Faults of the ``processors:`` section, which sets options for every use of a processor."""
    faults = []
    known = [*IMAGE_PROCESSORS.names(), *TEXT_PROCESSORS.names()]
    for name, options in defaults.items():
        where = f"processors.{name}"
        if name not in known:
            faults.append(Fault(where, f"unknown processor; {nearest(name, known)}"))
        elif not isinstance(options, dict):
            faults.append(Fault(where, f"must be a set of keys, not {options!r}"))
        else:
            registry = IMAGE_PROCESSORS if name in IMAGE_PROCESSORS.names() else TEXT_PROCESSORS
            faults += bind(registry.get(name), options, where)[1]
    return faults


def _with_processor_defaults(
    entry: dict[str, Any] | None, defaults: dict[str, Any]
) -> dict[str, Any]:
    """Put the ``processors:`` section's options under each processor of that name."""
    entry = dict(entry or {})
    for kind in ("vis_processor", "text_processor"):
        specs = entry.get(kind)
        if isinstance(specs, dict):
            entry[kind] = {
                split: {**(defaults.get(str(spec.get("name"))) or {}), **spec}
                if isinstance(spec, dict)
                else spec
                for split, spec in specs.items()
            }
    return entry
