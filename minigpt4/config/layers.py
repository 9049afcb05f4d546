"""Layers: preset < YAML < ``--options`` → one config.

Presets are the files of ``minigpt4/configs``; a ``processors:`` section is put under the
processors of all data sets.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from minigpt4.config.reading import parse, read_option, read_yaml, resolve
from minigpt4.errors import ConfigError, Fault, near, nearest, one_line, shown
from minigpt4.registry import BUILDERS, IMAGE_PROCESSORS, MODELS, TEXT_PROCESSORS, bind

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
REFUSED_ARCHS = {"minigpt_v2": "MiniGPT-v2 is not supported; use arch minigpt4 or mini_gpt4"}
_KNOWN = {*SECTIONS, *RETIRED}
_MAX_KEY, _MAX_TEXT = 200, 1000

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One origin of values: a preset, the YAML, or the options."""

    name: str
    content: dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """A merged config; its sections are plain dictionaries."""

    path: Path
    model: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    run: dict[str, Any]
    chat: dict[str, Any]
    faults: tuple[Fault, ...] = ()  # found while merging; check_sections reports them
    layers: tuple[Layer, ...] = ()  # lowest first; they say where each value came from

    @property
    def arch(self) -> str:
        return str(self.model.get("arch"))

    # The sections without the keys that choose what they configure.

    def dataset_options(self, dataset: str) -> dict[str, Any]:
        return {key: value for key, value in self.datasets[dataset].items() if key != "type"}

    def model_options(self) -> dict[str, Any]:
        return {k: v for k, v in self.model.items() if k not in ("arch", "model_type")}

    def run_options(self) -> dict[str, Any]:
        return {key: value for key, value in self.run.items() if key != "runner"}

    def resolved(self) -> dict[str, Any]:
        """Return all sections, as they are saved with a run."""
        return {"model": self.model, "datasets": self.datasets, "run": self.run, "chat": self.chat}


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Read a YAML, with its presets underneath and ``--options`` (``a.b=c``) on top.

    Raises:
        ConfigError: for a file or option that cannot be read; ``faults`` keeps errors *inside*.
    """
    path = Path(path)
    yaml = Layer(str(path), read_yaml(path))
    on_top: dict[Any, Any] = functools.reduce(merge, map(read_option, options), {})
    try:
        return _merge(path, yaml, Layer("--options", on_top))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error


def merge(below: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return sets of keys joined; of anything else, the upper one."""
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
    # The files choose the presets; ${…} is resolved with the presets underneath.
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
    faults += put_processor_defaults(datasets, sections["processors"])
    model, run, chat = (sections[name] for name in ("model", "run", "chat"))
    return Config(path, model, datasets, run, chat, tuple(dict.fromkeys(faults)), layers)


def _entry_fault(name: Any, entry: Any) -> Fault:
    text = f"must be a set of keys, not {shown(entry)}"
    return Fault(f"datasets.{name}", text if name in BUILDERS.names() else unknown_data_set(name))


def _joined(layers: Sequence[Layer]) -> dict[Any, Any]:
    return functools.reduce(merge, (layer.content for layer in layers), {})


def _known_sections(content: Mapping[Any, Any], faults: list[Fault]) -> dict[Any, Any]:
    """Return the known sections; a mistyped name counts as the section that was meant."""
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
    """Return every section as a set of keys, ``plugins`` as a list."""
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        kind, value = list if name == "plugins" else dict, whole.get(name)
        sections[name] = value if isinstance(value, kind) else kind()
        if not isinstance(value, kind | None):
            words = "list of files or modules" if name == "plugins" else "set of keys"
            faults.append(Fault(name, f"must be a {words}, not {shown(value)}"))
    return sections


def _plugin_faults(plugins: Sequence[Any], folder: Path) -> list[Fault]:
    """Import the plug-ins; return an error for each that cannot be imported."""
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
    """Remove retired keys, with one line each."""
    faults: list[Fault] = []
    for key in RETIRED:
        section, _, name = key.rpartition(".")
        keys = whole.get(section) if section else whole
        if isinstance(keys, dict) and name in keys:
            faults += _remove(path, key, keys, name)
    return faults


def _remove(path: Path, key: str, keys: dict[str, Any], name: str) -> list[Fault]:
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
    """Return ``model.trainable`` as the original's ``freeze_qformer: False`` means it."""
    parts = ["llama_proj"] if trainable is None else trainable
    return [*parts, "q_former"] if isinstance(parts, list) and "q_former" not in parts else parts


def model_preset(model: Mapping[str, Any], faults: list[Fault]) -> list[Layer]:
    """Return ``configs/models/<arch>_<model_type>.yaml``; an arch without presets needs none."""
    arch, model_type = model.get("arch"), model.get("model_type")
    if not isinstance(arch, str) or arch in REFUSED_ARCHS or arch not in MODELS.names():
        faults.append(Fault("model.arch", _arch_error(arch)))
        return []
    folder = resources.files("minigpt4.configs") / "models"
    names = [file.name for file in folder.iterdir() if file.name.startswith(f"{arch}_")]
    name = f"{arch}_{model_type}"
    if isinstance(model_type, str) and f"{name}.yaml" in names:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
        return [Layer(f"preset {name}", parse(text))]
    if names or model_type is not None:
        types = sorted(name.removeprefix(f"{arch}_").removesuffix(".yaml") for name in names)
        text = f"unknown model type {shown(model_type)}" if model_type else "missing"
        faults.append(Fault("model.model_type", f"{text}; known: {', '.join(types)}"))
    return []


def _arch_error(arch: Any) -> str:
    if isinstance(arch, str) and arch in REFUSED_ARCHS:
        return REFUSED_ARCHS[arch]
    text = f"unknown model {shown(arch)}" if arch else "missing"
    return f"{text}; known: {', '.join(MODELS.names())}"


def builder_of(name: Any, entry: Any) -> Any:
    """Return the builder of an entry of ``datasets``: its ``type``, or else its name."""
    return entry.get("type", name) if isinstance(entry, Mapping) else name


def unknown_data_set(name: Any) -> str:
    hint = nearest(name, BUILDERS.names())
    return f"unknown data set; {hint}; one of your own says what it is by type: pairs"


def data_presets(entries: Mapping[Any, Any]) -> list[Layer]:
    """Return ``configs/datasets/<builder>.yaml`` of each data set whose builder has one."""
    folder = resources.files("minigpt4.configs") / "datasets"
    known = {file.name.removesuffix(".yaml"): file for file in folder.iterdir()}
    builders = {name: str(builder_of(name, entry)) for name, entry in entries.items()}
    return [
        Layer(f"preset {builder}", {"datasets": {name: parse(known[builder].read_text("utf-8"))}})
        for name, builder in builders.items()
        if builder in known
    ]


def put_processor_defaults(
    datasets: dict[str, dict[str, Any]], defaults: Mapping[Any, Any]
) -> list[Fault]:
    """Put the ``processors:`` section under the data sets' processors, if it has no errors."""
    faults = [fault for name in defaults for fault in _processor_faults(name, defaults[name])]
    for entry in () if faults else datasets.values():
        for kind in {"vis_processor", "text_processor"} & entry.keys():
            if isinstance(entry[kind], dict):
                entry[kind] = {k: _over(spec, defaults) for k, spec in entry[kind].items()}
    return faults


def _processor_faults(name: Any, options: Any) -> list[Fault]:
    where, registries = f"processors.{name}", (IMAGE_PROCESSORS, TEXT_PROCESSORS)
    registry = next((each for each in registries if name in each.names()), None)
    if registry is None:
        known = [name for each in registries for name in each.names()]
        return [Fault(where, f"unknown processor; {nearest(name, known)}")]
    if not isinstance(options, dict):
        return [Fault(where, f"must be a set of keys, not {shown(options)}")]
    return bind(registry.get(name), options, where)[1]


def _over(spec: Any, defaults: Mapping[Any, Any]) -> Any:
    below = defaults.get(str(spec.get("name"))) if isinstance(spec, dict) else None
    return {**below, **spec} if below else spec


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Raise a ``ConfigError`` with all errors, one a line, if there are any."""
    if lines := dict.fromkeys(_line(path, fault) for fault in faults):
        raise ConfigError("\n".join(lines))


def _line(path: Path, fault: Fault) -> str:
    line = f"{_printable(fault.key, _MAX_KEY)}: {_printable(fault.text, _MAX_TEXT)}"
    return line if fault.key.startswith("--") else f"{path}: {line}"


def _printable(text: str, longest: int) -> str:
    """Return one line, whatever keys and values hold: line breaks, half a surrogate pair."""
    shortened = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shortened)
