"""Presets: what ``minigpt4/configs`` and a ``processors:`` section put under a user's YAML."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from typing import Any

from minigpt4.config.reading import parse
from minigpt4.errors import Fault, nearest, shown
from minigpt4.registry import BUILDERS, IMAGE_PROCESSORS, MODELS, TEXT_PROCESSORS, bind

REFUSED_ARCHS = {"minigpt_v2": "MiniGPT-v2 is not supported; use arch minigpt4 or mini_gpt4"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One origin of values: a preset, the YAML, or the options together."""

    name: str
    content: dict[Any, Any]


def model_preset(model: Mapping[str, Any], faults: list[Fault]) -> list[Layer]:
    """``configs/models/<arch>_<model_type>.yaml``; an arch without presets needs none."""
    arch, model_type = model.get("arch"), model.get("model_type")
    if not isinstance(arch, str) or arch in REFUSED_ARCHS or arch not in MODELS.names():
        faults.append(Fault("model.arch", _arch_complaint(arch)))
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


def _arch_complaint(arch: Any) -> str:
    if isinstance(arch, str) and arch in REFUSED_ARCHS:
        return REFUSED_ARCHS[arch]
    text = f"unknown model {shown(arch)}" if arch else "missing"
    return f"{text}; known: {', '.join(MODELS.names())}"


def builder_of(name: Any, entry: Any) -> Any:
    """The builder of an entry of ``datasets``: its ``type``; without one it is the entry's name."""
    return entry.get("type", name) if isinstance(entry, Mapping) else name


def unknown_data_set(name: Any) -> str:
    """What is the matter with an entry that names no builder."""
    return (
        f"unknown data set; {nearest(name, BUILDERS.names())}; one of your own says what it is by "
        "type: pairs"
    )


def data_presets(entries: Mapping[Any, Any]) -> list[Layer]:
    """``configs/datasets/<builder>.yaml`` of each data set whose builder has one."""
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
    """Put the ``processors:`` section under the data sets' processors, where it has no faults."""
    faults = [fault for name in defaults for fault in _processor_faults(name, defaults[name])]
    for entry in () if faults else datasets.values():
        for kind in {"vis_processor", "text_processor"} & entry.keys():
            if isinstance(entry[kind], dict):
                entry[kind] = {k: _over(spec, defaults) for k, spec in entry[kind].items()}
    return faults


def _processor_faults(name: Any, options: Any) -> list[Fault]:
    """Faults of a processor's options in the ``processors:`` section."""
    where, registries = f"processors.{name}", (IMAGE_PROCESSORS, TEXT_PROCESSORS)
    registry = next((each for each in registries if name in each.names()), None)
    if registry is None:
        known = [name for each in registries for name in each.names()]
        return [Fault(where, f"unknown processor; {nearest(name, known)}")]
    if not isinstance(options, dict):
        return [Fault(where, f"must be a set of keys, not {shown(options)}")]
    return bind(registry.get(name), options, where)[1]


def _over(spec: Any, defaults: Mapping[Any, Any]) -> Any:
    """A processor's own options, over those that the ``processors:`` section gives to its name."""
    below = defaults.get(str(spec.get("name"))) if isinstance(spec, dict) else None
    return {**below, **spec} if below else spec
