"""Layers: preset < YAML < ``--options`` → one config."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from minigpt4.config.presets import (
    Layer,
    builder_of,
    data_presets,
    model_preset,
    put_processor_defaults,
    unknown_data_set,
)
from minigpt4.config.reading import read_option, read_yaml, resolve
from minigpt4.errors import ConfigError, Fault, near, nearest, one_line, shown
from minigpt4.registry import BUILDERS

SECTIONS = ("model", "datasets", "run", "chat", "processors", "plugins")
# Keys of the original that decide nothing any more, and what decides now.
RETIRED = {
    "run.world_size": "torchrun decides the number of processes",
    "run.dist_url": "torchrun decides the address",
    "run.distributed": "torchrun decides whether there are several processes",
    "run.job_name": "run.output_dir names the run",
    "run.wandb_log": "run.trackers: [wandb] sends the figures there; log.txt keeps them anyway",
    "run.train_splits": "a training reads what each data set's build_info names",
    "preprocess": "each data set names its own processors",
    "model.device_8bit": "--gpu-id decides the device",
    "model.drop_path_rate": "a frozen visual encoder drops no paths",
    "model.use_grad_checkpoint": "a frozen visual encoder keeps nothing for gradients",
    "model.prompt": "model.prompt_path names the prompts",
    "model.freeze_vit": "the visual encoder is always frozen; model.trainable names what is not",
    "model.freeze_qformer": "model.trainable names what is not frozen",
}
_KNOWN = {*SECTIONS, *RETIRED}
_MAX_KEY, _MAX_TEXT = 200, 1000

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
    layers: tuple[Layer, ...] = ()  # undermost first; they say where each value came from

    @property
    def arch(self) -> str:
        return str(self.model.get("arch"))

    def builder_of(self, dataset: str) -> Any:
        """The builder that a data set names, its ``type``; without one it is its own name."""
        return builder_of(dataset, self.datasets[dataset])

    def dataset_options(self, dataset: str) -> dict[str, Any]:
        """A data set's section without the key that chose its builder."""
        return {key: value for key, value in self.datasets[dataset].items() if key != "type"}

    def model_options(self) -> dict[str, Any]:
        """The model section without the two keys that chose the model."""
        return {k: v for k, v in self.model.items() if k not in ("arch", "model_type")}

    def run_options(self) -> dict[str, Any]:
        """The run section without the key that chose the runner."""
        return {key: value for key, value in self.run.items() if key != "runner"}

    def resolved(self) -> dict[str, Any]:
        """Everything, as it is saved beside a run."""
        return {"model": self.model, "datasets": self.datasets, "run": self.run, "chat": self.chat}


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a YAML, put its presets underneath and ``--options`` on top.

    Args:
        path: The YAML file.
        options: ``a.b=c`` each; the value is read as YAML.

    Raises:
        ConfigError: for a file or option that cannot be read at all; faults *inside* are found by
            :func:`minigpt4.config.check_config`.
    """
    path = Path(path)
    yaml = Layer(str(path), read_yaml(path))
    on_top: dict[Any, Any] = functools.reduce(merge, map(read_option, options), {})
    try:
        return _merge(path, yaml, Layer("--options", on_top))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def merge(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Sets of keys are joined; of anything else the upper one counts."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(known, value) if both else value  # type: ignore[arg-type]
    return merged


def _merge(path: Path, *given: Layer) -> Config:
    faults: list[Fault] = []
    if any(layer.content.keys() - _KNOWN for layer in given):
        given = tuple(Layer(layer.name, _known_sections(layer.content, faults)) for layer in given)
    # Presets are chosen by what is written; what ${…} means is known only with them underneath.
    draft = _sections(resolve(_joined(given), []), [])
    if draft["plugins"]:
        faults += _plugin_faults(draft["plugins"], path.parent)
    layers = (*model_preset(draft["model"], faults), *data_presets(draft["datasets"]), *given)
    whole = resolve(_joined(layers), faults)
    faults += _retire(path, whole)
    sections = _sections(whole, faults)
    entries = sections["datasets"].items()
    datasets = {n: entry or {} for n, entry in entries if isinstance(entry, dict | None)}
    faults += [_entry_fault(n, entry) for n, entry in entries if n not in datasets]
    if sections["processors"]:
        faults += put_processor_defaults(datasets, sections["processors"])
    model, run, chat = (sections[name] for name in ("model", "run", "chat"))
    return Config(path, model, datasets, run, chat, tuple(dict.fromkeys(faults)), layers)


def _entry_fault(name: Any, entry: Any) -> Fault:
    """What is the matter with a data set's entry that holds no keys."""
    text = f"must be a set of keys, not {shown(entry)}"
    return Fault(f"datasets.{name}", text if name in BUILDERS.names() else unknown_data_set(name))


def _joined(layers: Sequence[Layer]) -> dict[Any, Any]:
    return functools.reduce(merge, (layer.content for layer in layers), {})


def _known_sections(content: Mapping[Any, Any], faults: list[Fault]) -> dict[Any, Any]:
    """The sections that there are; one with a typing mistake counts as the one that was meant."""
    known: dict[Any, Any] = {}
    for name, value in content.items():
        if name in _KNOWN:
            known[name] = value
            continue
        faults.append(Fault(str(name), f"unknown section; {nearest(name, SECTIONS)}"))
        meant = near(name, SECTIONS)
        if meant is not None and meant not in content:
            known[meant] = value
    return known


def _sections(whole: Mapping[Any, Any], faults: list[Fault]) -> dict[str, Any]:
    """Every section as a set of keys, ``plugins`` as a list."""
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        kind, value = list if name == "plugins" else dict, whole.get(name)
        sections[name] = value if isinstance(value, kind) else kind()
        if not isinstance(value, kind | None):
            faults.append(_section_fault(name, value))
    return sections


def _section_fault(name: str, value: Any) -> Fault:
    kind = "list of files or modules" if name == "plugins" else "set of keys"
    return Fault(name, f"must be a {kind}, not {shown(value)}")


def _plugin_faults(plugins: Sequence[Any], folder: Path) -> list[Fault]:
    """Import the plugins; what cannot be imported is a fault."""
    from minigpt4.config.plugins import import_plugins

    faults: list[Fault] = []
    for plugin in plugins:
        try:
            if not isinstance(plugin, str):
                raise ConfigError(f"plugins: {shown(plugin)} is not a file or module")
            import_plugins([plugin], folder)
        except ConfigError as error:
            key, _, text = str(error).partition(": ")
            faults.append(Fault(key, text))
    return faults


def _retire(path: Path, whole: dict[str, Any]) -> list[Fault]:
    """Take out keys that decide nothing any more, with one line each."""
    faults: list[Fault] = []
    for key in RETIRED:
        section, _, name = key.rpartition(".")
        keys = whole.get(section) if section else whole
        if isinstance(keys, dict) and name in keys:
            faults += _take_out(path, key, keys, name)
    return faults


def _take_out(path: Path, key: str, keys: dict[str, Any], name: str) -> list[Fault]:
    value, reason = keys.pop(name), RETIRED[key]
    if name == "freeze_qformer" and value is False:
        keys["trainable"] = _with_q_former(keys.get("trainable"))
        logger.info("%s: %s: False is now model.trainable: %s", path, key, keys["trainable"])
    elif name.startswith("freeze_") and value is not True:
        return [Fault(key, f"only True is supported: {reason}")]
    else:
        logger.info("%s: %s is ignored: %s", path, key, reason)
    return []


def _with_q_former(trainable: Any) -> Any:
    """``model.trainable`` as the original's ``freeze_qformer: False`` means it."""
    parts = ["llama_proj"] if trainable is None else trainable
    if not isinstance(parts, list) or "q_former" in parts:
        return parts
    return [*parts, "q_former"]


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Raise all errors, one a line.

    Raises:
        ConfigError: when there are any.
    """
    lines = dict.fromkeys(_line(path, fault) for fault in faults)
    if lines:
        raise ConfigError("\n".join(lines))


def _line(path: Path, fault: Fault) -> str:
    line = f"{_printable(fault.key, _MAX_KEY)}: {_printable(fault.text, _MAX_TEXT)}"
    # What the command line said is in no file.
    return line if fault.key.startswith("--") else f"{path}: {line}"


def _printable(text: str, longest: int) -> str:
    """One line whatever keys and values hold: line breaks, escapes, half a surrogate pair."""
    shortened = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shortened)
